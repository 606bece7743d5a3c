"""Owns what came of trying a sample, and the plan that follows from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from zarr.storage import MemoryStore

from ...pipeline.ledger import Plan
from ...pipeline.types import Resources
from ...storage_schemas.class_vectors import ClassVectors, write_class_vectors
from ...storage_schemas.encodings import ENCODINGS, Encoding
from ...storage_schemas.encodings.floats import FloatEncoding
from ...storage_schemas.fingerprint import Fingerprint, canonical_json
from ...storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from ...storage_schemas.target_store import TargetBlock, open_root
from ..settings.plan import PlanSettings
from . import training
from .corpus import PlannedCorpus
from .figures import Basis, Figure
from .money import Money, money
from .plan import CachePlan, Left, StorePart
from .planned_encodings import PlannedEncodings
from .schedule import RAY_SECONDS, START_SECONDS, Schedule
from .shard_sizes import ShardSizes
from .store_sizes import StoreSizes, store_sizes

#: Kinds of time that a unit of `cache` notes, beside its receipt.
_KINDS = ("decode", "forward", "read", "wait", "write")


class Clock:
    """Seconds of kinds of work, one after another."""

    def __init__(self, began: float) -> None:
        self.seconds: dict[str, float] = {}
        self._last = began

    def lap(self, kind: str) -> None:
        """What was done since the last lap was of this kind."""
        now = time.perf_counter()
        self.seconds[kind] = self.seconds.get(kind, 0.0) + now - self._last
        self._last = now


@dataclass(kw_only=True)
class Tried:
    """What came of trying a sample.

    Attributes:
        description: of the store: what it will record.
        block: rows of it, in fp32.
        encodings: of the targets, fitted to rows of the sample.
        basis: where values come from, by the names of targets, and of arrays that hold none; of others they are measured.
        vectors: what class vectors take: files, and bytes.
        shards: what shards take; None where nothing tells.
        rate: views a second of a worker; None where no teacher ran.
        timed: how that was found, in words.
        loading, opening: seconds until a command has its libraries and its teacher; and from then until its first batch.
        pairs: images a second that one core makes pairs of.
        needs: of one worker.
    """

    description: StoreDescription
    block: TargetBlock
    vectors: tuple[int, Figure]
    encodings: PlannedEncodings = field(default_factory=PlannedEncodings)
    basis: Mapping[str, Basis] = field(default_factory=dict)
    shards: ShardSizes | None = None
    rate: Figure | None = None
    timed: str = ""
    loading: float | None = None
    opening: float = 0.0
    pairs: Figure | None = None
    needs: Resources = field(default_factory=Resources)


@dataclass(frozen=True, kw_only=True)
class Hours:
    """What the hours are of.

    Attributes:
        workers: how many there are, of those that need so much each.
        on_ray: whether Ray starts first, and each worker loads the teacher again.
        shards, rows: left to do; None for all.
    """

    workers: Callable[[Resources], int]
    on_ray: bool
    shards: int | None = None
    rows: int | None = None


def assembled(
    names: Mapping[str, str],
    corpus: PlannedCorpus,
    tried: Tried,
    planning: PlanSettings,
    hours: Hours,
    *,
    bundle: Figure | None = None,
    left: Left | None = None,
) -> CachePlan:
    """The plan.

    Raises:
        InputError: a deadline that no number of workers meets; no rate of a student in the folder that should have one.
    """
    spec = tried.description.spec
    planned = tried.encodings
    encodings = {planned.label: _sizes(tried, spec)}
    encodings |= {n: _sizes(tried, new_spec(spec, e)) for n, e in ENCODINGS.items() if n != planned.label}
    sizes = encodings[planned.label]
    store = StorePart(sizes=sizes, vectors=tried.vectors, ledger=_ledger(tried.description))
    schedule = _schedule(corpus, tried, planning, hours)
    rate = training.student_rate(planning.student_rate, planning.student_run)
    feed = None if rate is None else training.feed(rate, tried.shards, sizes, tried.pairs)
    costs = None
    if schedule is not None and planning.epochs is not None:
        whole = corpus.rows * spec.num_views / schedule.rate.value
        costs = training.costs(
            teacher=Figure.of(whole, schedule.rate),
            rows=corpus.rows,
            views=spec.num_views,
            epochs=planning.epochs,
            students=planning.students,
            rate=rate,
        )
    plan = CachePlan(
        names=names,
        corpus=corpus,
        spec=spec,
        shards=tried.shards,
        store=store,
        encoding=planned.label,
        encodings=encodings,
        target_costs=planned.costs,
        notes=planned.notes,
        budgets={name: encoding.kl_budget for name, encoding in ENCODINGS.items()},
        bundle=bundle,
        schedule=schedule,
        timed=tried.timed if planning.rate is None else "",
        workers=hours.workers(tried.needs),
        deadline=planning.deadline,
        needed=None if schedule is None or planning.deadline is None else schedule.workers_for(planning.deadline),
        left=left,
        feed=feed,
        costs=costs,
        students=planning.students,
    )
    return replace(plan, money=_money(plan, planning))


def _sizes(tried: Tried, spec: StoreSpec) -> StoreSizes:
    """Of the store with these encodings."""
    basis = dict(tried.basis)
    for target in spec.targets:
        if target.name in basis:
            basis |= {array.name: basis[target.name] for array in spec.encoding_of(target).arrays(target)}
    return store_sizes(replace(tried.description, spec=spec), tried.block, basis)


def new_spec(spec: StoreSpec, encoding: FloatEncoding, own: Mapping[str, Encoding] | None = None) -> StoreSpec:
    """Of a new store of as many rows, shards and views.

    Args:
        encoding: of the whole store.
        own: of targets that have their own.
    """
    own = own or {}

    def target(old: TargetSpec) -> TargetSpec:
        return TargetSpec.of(
            old.name,
            old.axes[2:],
            old.shape,
            shard_size=spec.shard_size,
            num_rows=spec.num_rows,
            num_views=spec.views_together,
            encoding=own.get(old.name, encoding),
            own=old.name in own,
        )

    return replace(spec, encoding=encoding, targets=tuple(map(target, spec.targets)))


def vectors_size(vectors: ClassVectors, basis: Basis) -> tuple[int, Figure]:
    """What class vectors take that are not written yet, without what `vectors` keeps of its run."""
    files: dict[str, bytes] = {}
    root = open_root(MemoryStore(files), mode="a")  # type: ignore[arg-type]
    before = set(files)
    write_class_vectors(root, vectors, {})
    sizes = [len(data) for key, data in files.items() if key not in before]
    return len(sizes), Figure(value=sum(sizes), basis=basis)


def _ledger(description: StoreDescription) -> tuple[int, int]:
    """Files and bytes of plan and timings."""
    spec = description.spec
    plan = Plan(
        stage="cache",
        fingerprint=Fingerprint(fields=description.fingerprint),
        units=spec.num_shards,
        rows=spec.num_samples,
    )
    timings = len(canonical_json(dict.fromkeys(_KINDS, 12.345678))) + 1
    return 1 + spec.num_shards, len(plan.to_bytes()) + spec.num_shards * timings


def _schedule(corpus: PlannedCorpus, tried: Tried, planning: PlanSettings, hours: Hours) -> Schedule | None:
    rate = tried.rate if planning.rate is None else Figure(value=planning.rate, basis=Basis.STATED)
    if rate is None:
        return None
    spec = tried.description.spec
    if tried.loading is None:
        start = Figure(value=START_SECONDS + (RAY_SECONDS if hours.on_ray else 0.0), basis=Basis.TABLE)
    else:
        own = Figure(value=tried.loading + tried.opening, basis=Basis.MEASURED)
        start = Figure.of(own.value + tried.loading + RAY_SECONDS, own, Basis.TABLE) if hours.on_ray else own
    return Schedule(
        shards=spec.num_shards if hours.shards is None else hours.shards,
        rows=spec.shard_rows,
        all_rows=corpus.rows - (corpus.unusable or 0) if hours.rows is None else hours.rows,
        rate=rate,
        views=spec.num_views,
        start=start,
    )


def _money(plan: CachePlan, planning: PlanSettings) -> Money:
    schedule, costs = plan.schedule, plan.costs
    epochs = planning.epochs
    bundles = 0.0 if plan.bundle is None else plan.bundle.value * (planning.students - 1)
    read = sum(array.read_objects for array in plan.store.sizes.arrays) + 2 * plan.spec.num_shards
    return money(
        planning,
        teacher_seconds=None
        if schedule is None
        else Figure.of(
            schedule.work_seconds.value + plan.workers * schedule.start.value, schedule.rate, schedule.start
        ),
        online_seconds=None
        if costs is None or schedule is None
        else Figure.of(costs.online * planning.students, schedule.rate),
        student_seconds=None
        if costs is None or not costs.students or plan.feed is None
        else Figure.of(sum(costs.students), plan.feed.images_per_second),
        kept_bytes=Figure.of(plan.total_bytes.value + bundles, plan.total_bytes),
        written=plan.store.objects + (0 if plan.shards is None else plan.shards.objects),
        read=None if epochs is None else read * epochs * planning.students,
    )
