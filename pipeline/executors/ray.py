"""Runs units on Ray actors: a cluster that is joined by address, or a local Ray that starts with the command.

An actor keeps its stage open (model loaded) and holds `units_at_once` units, so that reading the next overlaps
computing the present one. No pixels and no targets pass through Ray's object store: units and outcomes only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...storage_schemas.errors import InputError
from ..board import Board
from ..ledger import Ledger
from ..types import Stage, Unit
from ..worker import Outcome
from ..worker_range import WorkerRange
from .connection import connect
from .dispatch import Dispatch
from .head import ClusterEnded, RayHead
from .names import RayNames
from .ray_metrics import RayMetrics
from .site import Site
from .unit_queue import UnitQueue
from .worker_group import RayWorker


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
