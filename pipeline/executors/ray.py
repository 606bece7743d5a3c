"""Runs units on Ray actors: a cluster that is joined by address, or a local Ray that starts with the command.

An actor keeps its stage open (model loaded) and holds `units_at_once` units, so that reading the next overlaps
computing the present one. No pixels and no targets pass through Ray's object store: units and outcomes only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from ...storage_schemas.errors import InputError, StorageError, TeachonceError
from ..ledger import Ledger
from ..types import Stage, Unit
from ..worker import Outcome, Worker

#: How Ray behaves unless the user's environment says otherwise. Ray reads some of it as it is imported, so this module
#: says it first; nothing else in the package imports Ray.
_SETTINGS = {
    # With `uv run`, Ray would upload the working directory, and start workers by `uv run` in that copy.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # workers without a GPU of their own see them all
}
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)

#: Whether this machine's Ray may be joined by others.
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

#: How often Ray restarts a unit whose worker process died (out of memory, a killed node) before it counts as failed.
RETRIES_AFTER_A_DEAD_WORKER = 3


def connect(address: str | None, *, show_workers: bool = True) -> None:
    """Join the cluster at `address` (`auto` or host:port), or start Ray on this machine. Once per process.

    What starts on this machine listens on loopback only; a cluster that is joined stays as it is.

    `show_workers` says whether this process prints what workers and Ray's own helpers write to stdout and stderr.

    Raises:
        InputError: no cluster answers at `address`.
    """
    import ray

    if ray.is_initialized():
        return
    if address is None:
        # A Ray of our own tells nobody that it is used.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        with _loopback_only():
            ray.init(
                address="local", include_dashboard=False, logging_level="error", log_to_driver=show_workers
            )
        return
    try:
        _knock(address)
        ray.init(address=address, logging_level="error", log_to_driver=show_workers)
    except OSError as error:  # ConnectionError among them
        raise InputError(
            "no Ray cluster answers",
            where=address,
            hint="start one with `ray start --head`, or leave out --ray-address",
        ) from error


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


def _knock(address: str) -> None:
    """Fail at once where nothing listens; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def disconnect() -> None:
    """Leave the cluster, or stop the local Ray that `connect` started."""
    import ray

    ray.shutdown()


@dataclass(frozen=True, kw_only=True)
class RayExecutor:
    """A pool of actors on Ray.

    Attributes:
        address: None for a Ray of our own on this machine, `auto`, or a cluster's address.
        workers: number of actors; None takes what the cluster's CPUs and GPUs allow.
    """

    address: str | None = None
    workers: int | None = None

    def map(self, stage: Stage, ledger: Ledger, units: Iterable[Unit]) -> Iterator[Outcome]:
        """Outcomes as units finish; at most workers x units_at_once units are in flight."""
        import ray

        connect(self.address)
        needs = stage.resources
        count, cpus = place(room(), cpus=needs.cpus, gpus=needs.gpus, workers=self.workers)
        actor_class = ray.remote(Worker).options(  # type: ignore[attr-defined]
            num_cpus=cpus,
            num_gpus=needs.gpus,
            scheduling_strategy="SPREAD",
            max_concurrency=needs.units_at_once,
            max_restarts=-1,
            max_task_retries=RETRIES_AFTER_A_DEAD_WORKER,
        )
        pending = iter(units)
        slots = list(islice(pending, count * needs.units_at_once))
        actors = [actor_class.remote(stage, ledger) for _ in range(min(count, len(slots)))]
        in_flight: dict[Any, tuple[Any, Unit]] = {}
        for actor, unit in zip(cycle(actors), slots, strict=False):
            in_flight[actor.run.remote(unit)] = (actor, unit)
        try:
            while in_flight:
                ready, _ = ray.wait(list(in_flight), num_returns=1)
                actor, unit = in_flight.pop(ready[0])
                yield _outcome(ray, ready[0], ledger, unit)
                for unit in islice(pending, 1):
                    in_flight[actor.run.remote(unit)] = (actor, unit)
        finally:
            for actor in actors:
                ray.kill(actor)


def _outcome(ray: Any, reference: Any, ledger: Ledger, unit: Unit) -> Outcome:
    try:
        return ray.get(reference)  # type: ignore[no-any-return]
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, TeachonceError) and not isinstance(cause, StorageError):
            raise cause from error  # opening the stage failed: so will every other worker
        reason = f"{type(cause).__name__}: {cause}"
    except ray.exceptions.RayActorError as error:
        cause = getattr(error, "cause", None)
        reason = " ".join(str(error).split())
    ledger.fail(unit.key, reason, reason)
    return Outcome(key=unit.key, rows=unit.rows, error=reason)


def room() -> list[tuple[float, float]]:
    """(CPUs, GPUs) of each node of the cluster that was joined."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(float(n.get("CPU", 0)), float(n.get("GPU", 0))) for n in nodes]


def place(
    room: Sequence[tuple[float, float]], *, cpus: int, gpus: float, workers: int | None
) -> tuple[int, float]:
    """How many workers to start, and how many CPUs each asks Ray for.

    Args:
        room: (CPUs, GPUs) of each node.
        cpus, gpus: what a worker wants.
        workers: how many the user wants; None for as many as fit, at least one.

    A worker that no node can hold would wait for ever. So where the wanted ones do not fit, each asks for fewer
    CPUs than it uses: 1, then a half, and so on; they share cores, and Ray still spreads them over the nodes.

    Raises:
        InputError: no node has the GPUs for a worker, or not for so many.
    """

    def fitting(share: float) -> int:
        return sum(int(min(c / share, g / gpus if gpus else float("inf"))) for c, g in room)

    by_gpu = sum(int(g / gpus) for _, g in room) if gpus else None
    if by_gpu is not None and by_gpu < (workers or 1):
        raise InputError(
            "the Ray cluster has too few GPUs", where=f"{workers or 1} workers with {gpus:g} each",
            found=f"{sum(g for _, g in room):g} on {len(room)} nodes", hint="use fewer --workers, or --device cpu",
        )  # fmt: skip
    wanted, share = workers or max(1, fitting(cpus)), float(cpus)
    while fitting(share) < wanted and share > 0.01:
        share = 1.0 if share > 1 else share / 2
    return wanted, round(share, 4)
