"""Runs units on several processes that train together: Ray Train's TorchTrainer, on the same Ray as its sibling.

Every process opens the stage and runs the unit; torch.distributed tells it its rank, and the first rank commits. Nothing but
the unit passes through Ray: a stage goes on from what it keeps in its own output folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ...storage_schemas.errors import InputError, MissingDependency, TeachonceError
from ..ledger import Ledger
from ..storage import Location
from ..types import Stage, Unit
from ..worker import Outcome, Worker, failed
from .ray import connect, disconnect, place, room

#: How often a unit starts again, from what its stage kept, after one of its processes died.
RESTARTS_AFTER_A_DEAD_WORKER = 3

#: How long ranks wait for one that measures or writes alone. One that dies is noticed at once, in other ways.
WAIT_SECONDS = 6 * 3600

#: Until the first word of waiting for a cluster that has no room.
PATIENCE_SECONDS = 60.0

#: How Ray Train behaves unless the user's environment says otherwise.
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

    def map(self, stage: Stage, ledger: Ledger, units: Iterable[Unit]) -> Iterator[Outcome]:
        """Outcomes in the order of the units.

        Raises:
            MissingDependency: Ray Train's own dependencies are not installed.
            InputError: no cluster answers, or it has too few GPUs.
        """
        _require_ray_train()
        connect(self.address, show_workers=False)
        for unit in units:
            yield self._outcome(stage, ledger, unit)

    def _outcome(self, stage: Stage, ledger: Ledger, unit: Unit) -> Outcome:
        for restart in range(1, RESTARTS_AFTER_A_DEAD_WORKER + 2):
            error = self._attempt(stage, ledger, unit)
            if error is None:
                receipt = ledger.receipt(unit.key)
                if receipt is None:
                    error = InputError(
                        "the first worker finished, but its receipt is not here", where=ledger.folder,
                        hint="give --out a folder on a file system that all nodes share",
                    )  # fmt: skip
                    break
                return Outcome(key=unit.key, rows=receipt.rows, invalid_rows=len(receipt.invalid_rows))
            if not _is_death(error) or restart > RESTARTS_AFTER_A_DEAD_WORKER:
                break
            _say(
                f"{stage.name}: a worker died, so all start again from the last checkpoint "
                f"({restart} of {RESTARTS_AFTER_A_DEAD_WORKER} times)"
            )
        return failed(ledger, unit, error)

    def _attempt(self, stage: Stage, ledger: Ledger, unit: Unit) -> Exception | None:
        """Do the unit once. Returns what went wrong: what a worker raised, else how one died."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        needs = stage.resources
        count, cpus = place(room(), cpus=needs.cpus, gpus=needs.gpus, workers=self.workers)
        folder = ledger.folder / f"ray-{unit.key}"
        folder.remove_folder()
        folder.make_dir()
        trainer = TorchTrainer(
            _work,
            train_loop_config={"stage": stage, "ledger": ledger, "unit": unit, "folder": folder},
            torch_config=TorchConfig(timeout_s=WAIT_SECONDS),
            scaling_config=ScalingConfig(
                num_workers=count, use_gpu=needs.gpus > 0,
                resources_per_worker={"CPU": cpus} | ({"GPU": needs.gpus} if needs.gpus else {}),
            ),
            run_config=RunConfig(
                name=unit.key, storage_path=str(folder.path), failure_config=FailureConfig(max_failures=0)
            ),
        )  # fmt: skip
        try:
            return _fit(trainer, folder / "said", f"{count} workers with {cpus:g} CPUs each")
        except BaseException:
            disconnect()  # Ctrl-C: nothing trains on
            raise
        finally:
            folder.remove_folder()


def _work(config: dict[str, Any]) -> None:
    """In each process: its part of the unit. What the first rank says on stderr goes to the file that the driver reads."""
    from ray.train import get_context

    first = get_context().get_world_rank() == 0
    folder: Location = config["folder"]
    if not folder.is_dir():
        raise InputError(
            "a worker does not see the output folder", where=folder,
            hint="give --out a folder on a file system that all nodes share",
        )  # fmt: skip
    with contextlib.ExitStack() as stack:
        if first:
            said = io.TextIOWrapper((folder / "said").append(), encoding="utf-8", line_buffering=True)
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(said)))
        Worker(config["stage"], config["ledger"]).attempt(config["unit"], commit=first)


def _fit(trainer: Any, said: Location, wanted: str) -> Exception | None:
    """Wait for the trainer, and print meanwhile what its first rank says. Returns the error that counts, if any.

    In a thread, because Ray Train's own answer to Ctrl-C takes its time and exits with 0.
    """
    errors: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=fit, name="Ray Train", daemon=True)
    thread.start()
    start, printed = time.monotonic(), 0
    patience = PATIENCE_SECONDS
    while thread.is_alive():
        thread.join(0.2)
        printed += _print_from(said, printed)
        if not said.exists() and time.monotonic() - start > patience:
            _say(f"waiting for the Ray cluster to have room for {wanted}")
            patience *= 10
    _print_from(said, printed)
    return _what_counts(errors[0]) if errors else None


def _print_from(said: Location, offset: int) -> int:
    """Print whole lines; returns their bytes."""
    new = said.read_range(offset, size - offset) if (size := said.size() or 0) > offset else b""
    lines = new[: new.rfind(b"\n") + 1]
    print(lines.decode(errors="replace"), end="", file=sys.stderr, flush=True)
    return len(lines)


def _what_counts(error: Exception) -> Exception:
    """Of all ranks' errors the one to tell: what one raised, before how one died and what that did to the others."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    failures.sort(key=lambda e: (_is_death(e), not isinstance(e, TeachonceError), not _is_rays(e)))
    if failures[0] is not error:
        failures[0].__cause__ = error  # with the tracebacks of the workers, as text
    return failures[0]


def _is_death(error: Exception) -> bool:
    """Whether a process or its machine died, or this one lost contact to it, rather than raised an error of its own."""
    lost = isinstance(error, RuntimeError) and any(n in str(error) for n in ("gloo", "NCCL", "c10d"))
    return lost or _is_rays(error)


def _is_rays(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] == "ray"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _require_ray_train() -> None:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray.train.torch  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            "training on several workers needs Ray Train", "pip install 'teachonce[train]'"
        ) from error
