"""Runs units on several processes that train together: Ray Train's TorchTrainer, on the same Ray as its sibling.

Every process opens the stage and runs the unit; torch.distributed gives it its rank, and the first rank commits. Nothing but
the unit passes through Ray: a stage goes on from what it keeps in its own output folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from ...storage_schemas.errors import InputError, MissingDependency, TeachonceError
from .. import lean_imports
from ..board import Board
from ..cores import assign_cores, usable_cores
from ..ledger import Ledger
from ..storage import Location
from ..terminal import one_line_warnings
from ..types import Stage, Timer, Unit
from ..worker import Effort, Outcome, Worker, failed, outcome_of
from .connection import connect, disconnect
from .process_group import LOOPBACK, WAIT_SECONDS, lost_contact, stay_on_loopback, stay_on_network_of
from .ray import place, room, start_note, wait_note
from .site import Site

#: How often a unit starts again, from what its stage kept, after one of its processes died.
RESTARTS_AFTER_A_DEAD_WORKER = 3

#: Until the first note on waiting for a cluster that may have no room.
NOTE_AFTER_SECONDS = 60.0

#: Ray Train's settings, unless the user's environment has others.
_SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",  # the default from Ray 2.51 on
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # the paths that users see are relative to theirs
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # stderr is stderr
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less; stages make their own checkpoints
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # 60 s are short for importing torch on slow disks
}


@dataclass(frozen=True, kw_only=True)
class RayTrainExecutor:
    """A group of processes that does one unit after another, all of them together.

    Attributes:
        workers: number of processes.
        address: None for a Ray of our own on this machine, `auto`, or a cluster's address.
    """

    workers: int
    address: str | None = None

    def map(self, stage: Stage, ledger: Ledger, units: Iterable[Unit], board: Board) -> Iterator[Outcome]:
        """Outcomes in the order of the units.

        Raises:
            MissingDependency: Ray Train's own dependencies are not installed.
            InputError: no cluster answers, or it has too few GPUs.
        """
        _require_ray_train()
        board.starting(start_note(self.address))
        connect(self.address)
        for unit in units:
            yield self._outcome(stage, ledger, unit, board)

    def _outcome(self, stage: Stage, ledger: Ledger, unit: Unit, board: Board) -> Outcome:
        restarts, timer, name = 0, Timer(), f"{self.workers} workers"
        while (error := self._attempt(stage, ledger, unit, board)) is not None:
            if not _is_death(error) or restarts == RESTARTS_AFTER_A_DEAD_WORKER:
                return replace(failed(ledger, unit, error), effort=Effort.here(timer, name))
            restarts += 1
            board.say(
                "a worker died, so all start again from the last checkpoint "
                f"({restarts} of {RESTARTS_AFTER_A_DEAD_WORKER} times)"
            )
        receipt = ledger.receipt(unit.key)
        if receipt is None:
            raise _not_shared("the first worker finished, but its receipt is not here", ledger.folder)
        timer.seconds = ledger.timings([unit.key])
        return outcome_of(receipt, Effort.here(timer, name, receipt))

    def _attempt(self, stage: Stage, ledger: Ledger, unit: Unit, board: Board) -> Exception | None:
        """Do the unit once. Returns what went wrong: what a worker raised, else how one died."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        needs = stage.resources
        count, cpus = place(room(), cpus=needs.cpus, gpus=needs.gpus, workers=self.workers)
        note = wait_note(count, cpus)
        board.starting(note)
        folder = ledger.folder / f"ray-{unit.key}"
        folder.remove_folder()
        folder.make_dir()

        class Trainer(TorchTrainer):  # type: ignore[misc]
            def _register_sigint_handler(self, controller: object) -> None:
                """Ctrl-C raises KeyboardInterrupt here, as elsewhere. Ray Train's own waits for workers that start."""

        torch_config, meeting_point = _process_group(self.address, gpus=needs.gpus > 0)
        trainer = Trainer(
            _work,
            train_loop_config={
                "stage": stage,
                "ledger": ledger,
                "unit": unit,
                "folder": folder,
                "site": Site.here(),
            },
            torch_config=torch_config,
            scaling_config=ScalingConfig(
                num_workers=count,
                use_gpu=needs.gpus > 0,
                resources_per_worker={"CPU": cpus} | ({"GPU": needs.gpus} if needs.gpus else {}),
            ),
            run_config=RunConfig(
                name=unit.key, storage_path=str(folder.path), failure_config=FailureConfig(max_failures=0)
            ),
        )
        try:
            return _fit(trainer, folder / "said", note, board)
        except BaseException:
            disconnect()  # Ctrl-C: nothing trains on
            raise
        finally:
            folder.remove_folder()
            del trainer, meeting_point


def _process_group(address: str | None, *, gpus: bool) -> tuple[Any, object]:
    """How the ranks find each other, for Ray Train; and what has to live until they are done.

    On a cluster they meet where Ray Train decides. The store that it lets the first rank open listens on all interfaces, so on one
    machine they meet at one that this process opens, on loopback.
    """
    from ray.train.torch import TorchConfig
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    whole: Any = TorchConfig().backend_cls

    class OnCluster(whole):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: object) -> None:
            import ray

            ray.get([worker_group.execute_single_async(i, _use_network_of_ray) for i in range(len(worker_group))])
            super().on_start(worker_group, backend_config)

    class ClusterConfig(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type:
            return OnCluster

    if address is not None:
        return ClusterConfig(timeout_s=WAIT_SECONDS), None
    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    store = TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())

    class OnLoopback(whole):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: object) -> None:
            import ray

            size = len(worker_group)
            ray.get([worker_group.execute_single_async(i, _join, port, i, size, gpus) for i in range(size)])

    class Config(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type:
            return OnLoopback

    return Config(timeout_s=WAIT_SECONDS), store


def _use_network_of_ray() -> None:
    """In each process on a cluster: gloo takes the network by which Ray reaches this node. By itself it takes the one that the machine's
    name stands for, which is loopback on many."""
    import ray

    stay_on_network_of(ray.util.get_node_ip_address())


def _join(port: int, rank: int, size: int, gpus: bool) -> None:
    """In each process on one machine: become a rank of the group that meets at `port`."""
    from torch.distributed import TCPStore, init_process_group  # type: ignore[attr-defined]

    stay_on_loopback()
    patience = timedelta(seconds=WAIT_SECONDS)
    store = TCPStore(LOOPBACK, port, is_master=False, wait_for_workers=False, timeout=patience)
    init_process_group("nccl" if gpus else "gloo", store=store, rank=rank, world_size=size, timeout=patience)


def _work(config: dict[str, Any]) -> None:
    """In each process: its part of the unit. What the first rank writes to stderr goes to the file that the driver reads."""
    from ray.train import get_context

    lean_imports.install()
    one_line_warnings()
    config["site"].enter()
    context = get_context()
    assign_cores(max(1, usable_cores() // context.get_local_world_size()))  # those on one machine share its cores
    first = context.get_world_rank() == 0
    folder: Location = config["folder"]
    if not folder.is_dir():
        raise _not_shared("a worker does not see the output folder", folder)
    with contextlib.ExitStack() as stack:
        if first:
            stderr_file = io.TextIOWrapper((folder / "said").append(), encoding="utf-8", line_buffering=True)
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(stderr_file)))
        worker = stack.enter_context(contextlib.closing(Worker(config["stage"], config["ledger"])))
        worker.attempt(config["unit"], commit=first)


def _fit(trainer: Any, stderr_file: Location, late: str, board: Board) -> Exception | None:
    """Wait for the trainer, and print meanwhile what its first rank writes. Returns the error that counts, if any."""
    done = threading.Event()
    relay = threading.Thread(target=_relay, args=(stderr_file, late, board, done), name="relay", daemon=True)
    relay.start()
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit as left:  # what Ray Train's own handler of Ctrl-C ends in
        raise KeyboardInterrupt from left
    except Exception as error:
        return _decisive_error(error)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, ctrl_c)
        done.set()
        relay.join()
    return None


def _relay(stderr_file: Location, late: str, board: Board, done: threading.Event) -> None:
    printed, seconds, patience = 0, 0.0, NOTE_AFTER_SECONDS
    while not done.wait(0.2):
        printed += _print_from(stderr_file, printed, board)
        seconds += 0.2
        if seconds > patience and not stderr_file.exists():
            board.say(late)
            patience *= 10
    _print_from(stderr_file, printed, board)


def _print_from(stderr_file: Location, offset: int, board: Board) -> int:
    """Print whole lines; returns their bytes."""
    new = stderr_file.read_range(offset, size - offset) if (size := stderr_file.size() or 0) > offset else b""
    lines = new[: new.rfind(b"\n") + 1]
    for line in lines.decode(errors="replace").splitlines():
        board.say(line)
    return len(lines)


def _decisive_error(error: Exception) -> Exception:
    """Of all ranks' errors the one to report: what one raised, before how one died and what that did to the others.

    Older Rays hand over what was raised wrapped up with its traceback.
    """
    failures: list[Exception] = [
        getattr(e, "_base_exc", e) for e in getattr(error, "worker_failures", {}).values()
    ] or [error]
    failures.sort(key=lambda e: (_is_death(e), not isinstance(e, TeachonceError), not _is_ray_error(e)))
    if failures[0] is not error:
        failures[0].__cause__ = error  # with the tracebacks of the workers, as text
    return failures[0]


def _is_death(error: Exception) -> bool:
    """Whether a process or its machine died, or this one lost contact to it, rather than raised an error of its own."""
    return lost_contact(error) or _is_ray_error(error)


def _is_ray_error(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] == "ray"


def _not_shared(what: str, where: Location) -> InputError:
    return InputError(
        what,
        code="output-not-shared",
        where=where,
        hint="give --out a folder on a file system that all nodes share",
    )


def _require_ray_train() -> None:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray.train.torch  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            "training on several workers needs Ray Train", "pip install 'teachonce[train]'"
        ) from error
