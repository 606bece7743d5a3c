"""Runs units on Ray actors: a cluster that is joined by address, or a local Ray that starts with the command.

An actor keeps its stage open (model loaded) and holds `units_at_once` units, so that reading the next overlaps
computing the present one. No pixels and no targets pass through Ray's object store: units and outcomes only.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...storage_schemas.errors import InputError
from ..board import Board
from ..ledger import Ledger
from ..sockets import folder_for_sockets
from ..types import Stage, Unit
from ..worker import Outcome
from ..worker_range import WorkerRange
from .dispatch import Dispatch
from .head import ClusterEnded, RayHead, is_reachable
from .names import RayNames
from .native_stderr import last_lines, put_back, set_aside
from .ray_metrics import RayMetrics
from .shipped import shipped
from .site import Site
from .unit_queue import UnitQueue
from .worker_group import RayWorker

#: Ray's settings, unless the user's environment has others. Ray reads some of it as it is imported, so this module
#: sets it first; nothing else in the package imports Ray.
_SETTINGS = {
    # With `uv run`, Ray would upload the working directory, and start workers by `uv run` in that copy.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # workers without a GPU of their own see them all
    # Of a Ray that starts here: busy cores, and libraries on a network mount, are slow.
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_gcs_server_port_wait_time_s": "300",
}
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)

#: Whether this machine's Ray may be joined by others.
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

#: What Ray says where a cluster asks for a token, and none or another was given.
_TOKENS = ("InvalidAuthToken", "no authentication token")

#: Bytes of /ray/session_2026-01-01_12-00-00_123456_4194304/sockets/plasma_store, and some more.
_SOCKET_BELOW = 70


def connect(address: str | None) -> None:
    """Join the cluster at `address` (`auto` or host:port), or start Ray on this machine. Once per process.

    What starts on this machine listens on loopback only; a cluster that is joined stays as it is. What workers and Ray's own
    helpers write to stdout and stderr is in Ray's logs; what people should see, workers report.

    Raises:
        InputError: no cluster answers at `address`, or it does not take this process in; Ray cannot start here.
    """
    import ray

    if ray.is_initialized():
        return
    set_aside()
    # Ray prints on the driver's stdout what went wrong on a node; what matters of it comes as an outcome.
    worker: Any = sys.modules["ray._private.worker"]
    worker._worker_logs_enabled = False
    if address is None:
        # A Ray of our own sends no usage statistics.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        folder = _session_folder()
        try:
            with _loopback_only():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    logging_level="error",
                    log_to_driver=False,
                    _temp_dir=folder,
                )
        except Exception as error:  # Ray gives its processes half a minute, and raises a plain Exception
            raise InputError(
                "Ray cannot start on this machine",
                code="ray-start-failed",
                where=folder or "/tmp/ray",
                found=str(error) or type(error).__name__,
                hint="if the machine is busy, run the same command again later; --executor serial works without Ray",
            ) from error
        return
    host = address.removeprefix("ray://")
    if host.rpartition(":")[2].isdecimal() and not is_reachable(host, seconds=10):
        raise _no_cluster(address)  # at once; Ray itself would try for minutes
    try:
        with shipped() as runtime_env:
            ray.init(address=address, logging_level="error", log_to_driver=False, runtime_env=runtime_env)
    except Exception as error:  # versions that differ are a RuntimeError, a token that is missing a ConnectionError
        found = last_lines() or str(error)
        if any(words in found or words in str(error) for words in _TOKENS):
            raise InputError(
                "the Ray cluster asks for a token",
                code="ray-token-missing",
                where=address,
                expected="the token of the cluster",
                found="none, or another one",
                hint="export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE, a file with that token, then run the same command again",
            ) from error
        if address == "auto":
            raise _no_cluster(address) from error
        raise InputError(
            "the Ray cluster does not take this command in",
            code="ray-cluster-refuses",
            where=address,
            found=found,
            hint=f"give it Ray {ray.__version__} as here",
        ) from error


def _no_cluster(address: str) -> InputError:
    return InputError(
        "no Ray cluster answers",
        code="ray-cluster-missing",
        where=address,
        hint="start one with `ray start --head`, or leave out --ray-address",
    )


def _session_folder() -> str | None:
    """Where a local Ray keeps its session; None for where it would itself.

    Raises:
        InputError: no folder has a path that is short enough for sockets.
    """
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    folder = folder_for_sockets(usual, _SOCKET_BELOW, "RAY_TMPDIR")
    return None if folder == usual else f"{folder}/ray"


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """A Ray that starts within takes 127.0.0.1 as its node's address, and then every process of it listens there only.

    `ray.init(_node_ip_address="127.0.0.1")` takes the address of the network card instead. What Ray offers is the variable by
    which it does the same on macOS, unless the user has set it. The driver read it when it imported Ray, its children read it now.
    """
    import ray  # noqa: F401

    if _CLUSTERS in os.environ:
        yield
        return
    constants: Any = sys.modules["ray._private.ray_constants"]
    before = constants.ENABLE_RAY_CLUSTER
    os.environ[_CLUSTERS], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        del os.environ[_CLUSTERS]
        constants.ENABLE_RAY_CLUSTER = before


def disconnect() -> None:
    """Leave the cluster, or stop the local Ray that `connect` started."""
    import ray

    ray.shutdown()
    put_back()


@dataclass(frozen=True, kw_only=True)
class RayExecutor:
    """A pool of actors on Ray.

    Attributes:
        address: None for a Ray of our own on this machine, `auto`, or a cluster's address.
        workers: number of actors, or from how many to how many; None takes what the cluster's CPUs and GPUs allow.
        unit_timeout: seconds that a unit may take before its worker is killed; None for any time.
        workers_per_gpu: how many share one GPU.
    """

    address: str | None = None
    workers: int | WorkerRange | None = None
    unit_timeout: float | None = None
    workers_per_gpu: int = 1

    def map(self, stage: Stage, ledger: Ledger, units: Iterable[Unit], board: Board) -> Iterator[Outcome]:
        """Outcomes as units finish; at most workers x units_at_once units are in flight.

        Raises:
            InputError: no cluster answers, it has too few GPUs, or no GPU is used that workers could share.
        """
        import ray

        needs = stage.resources
        gpus = math.floor(needs.gpus / self.workers_per_gpu * 10_000) / 10_000  # what Ray can count
        if self.workers_per_gpu > 1 and not gpus:
            raise InputError(
                "no worker uses a GPU",
                code="option-needs-another",
                where="--workers-per-gpu",
                found=self.workers_per_gpu,
                hint="add --device cuda, or leave it out",
            )
        board.starting(start_note(self.address))
        connect(self.address)
        chosen = self.workers.least if isinstance(self.workers, WorkerRange) else self.workers
        count, cpus = place(room(), cpus=needs.cpus, gpus=gpus, workers=chosen)
        workers = self.workers if isinstance(self.workers, WorkerRange) else WorkerRange(count, count)
        start = wait_note(count, cpus)
        board.starting(start)
        actor_class = ray.remote(RayWorker)
        asked: dict[str, Any] = {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "scheduling_strategy": "SPREAD",
            "max_concurrency": needs.units_at_once + 1,  # one more to report
        }
        # In a list, so that Ray does not fetch them before the call. Class vectors may be in a stage.
        given, site = [ray.put((stage, ledger))], Site.here()
        names, metrics = RayNames(stage.name), RayMetrics(stage.name)

        def start_one() -> tuple[Any, Any]:
            actor = actor_class.options(name=names.worker(), namespace=names.namespace, **asked).remote()
            return actor, actor.open.options(name=names.opening).remote(site, given)

        dispatch = Dispatch(
            start_one,
            ledger,
            UnitQueue(units),
            workers=workers,
            units_at_once=needs.units_at_once,
            unit_timeout=self.unit_timeout,
            head=RayHead(ray.get_runtime_context().gcs_address),
            what=start,
            board=board,
            name_of=names.unit,
        )
        try:
            for outcome in dispatch.outcomes():
                metrics.count(outcome)
                yield outcome
            dispatch.group.collect_last_reports()
        except ClusterEnded:
            raise  # no worker is left to end
        except BaseException:
            dispatch.group.kill_all()
            raise
        dispatch.group.kill_all()


def start_note(address: str | None) -> str:
    return "starting Ray on this machine" if address is None else f"joining the Ray cluster at {address}"


def wait_note(workers: int, cpus: float) -> str:
    """The progress note while Ray has not started them; on a busy cluster that may take long."""
    needs = "1 CPU" if cpus == 1 else f"{cpus:g} CPUs"
    return (
        f"starting {workers} workers with {needs} each on Ray"
        if workers > 1
        else f"starting a worker with {needs} on Ray"
    )


def room() -> list[tuple[float, float]]:
    """(CPUs, GPUs) of each node of the cluster that was joined."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(float(n.get("CPU", 0)), float(n.get("GPU", 0))) for n in nodes]


def place(room: Sequence[tuple[float, float]], *, cpus: int, gpus: float, workers: int | None) -> tuple[int, float]:
    """How many workers to start, and how many CPUs each requests of Ray.

    Args:
        room: (CPUs, GPUs) of each node.
        cpus, gpus: of one worker.
        workers: number that the user chose; None for as many as fit, at least one. 0 for nodes that come only when they are wanted.

    A worker that no node can hold would wait for ever. So where the wanted ones do not fit, each requests fewer
    CPUs than it uses: 1, then a half, and so on; they share cores, and Ray still spreads them over the nodes.

    Raises:
        InputError: no node has the GPUs for a worker, or not for so many.
    """

    if workers == 0:
        return 1, float(cpus)

    def fitting(share: float) -> int:
        return sum(int(min(c / share, g / gpus if gpus else float("inf"))) for c, g in room)

    by_gpu = sum(int(g / gpus) for _, g in room) if gpus else None
    if by_gpu is not None and by_gpu < (workers or 1):
        raise InputError(
            "the Ray cluster has too few GPUs",
            code="ray-gpus-too-few",
            where=f"{workers or 1} workers with {gpus:g} each",
            found=f"{sum(g for _, g in room):g} on {len(room)} nodes",
            hint="use fewer --workers, or --device cpu",
        )
    wanted, share = workers or max(1, fitting(cpus)), float(cpus)
    while fitting(share) < wanted and share > 0.01:
        share = 1.0 if share > 1 else share / 2
    return wanted, round(share, 4)
