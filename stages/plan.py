"""`teachonce plan` and `cache --dry-run`: what shards, store, teacher and students will take, before any of it runs.

Whatever can be tried is tried: a sample of the images becomes real shards in a scratch folder, the real worker of `cache` runs on
them for some seconds, and the rows that it gives are written as they would be into the store. What is left is counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..pipeline.contents import Kind, kind_of
from ..pipeline.ledger import Ledger, Plan
from ..pipeline.output import another_output
from ..pipeline.settings import check
from ..pipeline.storage import Location, scratch_folder
from ..storage_schemas.class_vectors import ClassVectors, read_origin, write_class_vectors
from ..storage_schemas.encodings import ENCODINGS
from ..storage_schemas.errors import InputError
from ..storage_schemas.manifest import Entry
from ..storage_schemas.params_form import DERIVED
from ..storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from ..storage_schemas.target_store import open_root
from .cache import CacheStage, plan_cache
from .corpora.corpus_sources import first_sources
from .corpora.shards import ShardSet
from .encodings.request import DEFAULT
from .inputs.classes import read_classes
from .inputs.sources import open_sources
from .models.compute import Compute, teacher_compute
from .models.settings import ComputeSettings
from .models.teacher_config import TeacherConfig
from .pairs.store import open_store, read_vectors, vectors_if_any
from .planning.bundle_size import bundle_bytes
from .planning.corpus import PlannedCorpus, look_at_shards, look_at_sources
from .planning.drawn import drawn_corpus
from .planning.figures import Basis, Figure
from .planning.plan import CachePlan, Left
from .planning.planned_encodings import SampledTargets, choose_own, rows_to_fit, tell_encodings, views_to_fit
from .planning.sampled_shards import freeze_sample
from .planning.scratch import begin, cores_of_a_worker, folder_bytes, run_here
from .planning.shard_sizes import ShardSizes, finished_sizes, shard_sizes
from .planning.stand_in import stand_in_block, stand_in_logits, stand_in_vectors
from .planning.store_sizes import fitting_rows
from .planning.timing import time_pairs, time_teacher
from .planning.tried import Clock, Hours, Tried, assembled, new_spec, vectors_size
from .samples.registry import kind_named
from .settings.cache import CacheSettings
from .settings.plan import PlanSettings
from .settings.shard import ShardSettings
from .settings.vectors import VectorsSettings
from .shard import ShardStage
from .teachers import load_teacher
from .teachers.offers import EMBEDDING, LOGITS, target_names
from .vectors import plan_vectors
from .views.spec import ViewSpec

#: Images of a sample: two shards, since a worker has two at once; fewer where no teacher sees them, or they are drawn.
_SAMPLE, _SMALL_SAMPLE = 1024, 256

#: Of an image where no teacher gives a size.
_USUAL_SIZE = 224


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What `plan` is asked.

    Attributes:
        corpus: a folder of shards, or what `shard` takes; empty for none.
        teacher: None for none.
        views: None for the teacher's own centre crop.
        hours: where the teacher is to run.
        began: when the command began, as `time.perf_counter()`: what it has loaded since, `cache` loads too.
    """

    corpus: tuple[str, ...]
    teacher: TeacherConfig | None
    views: ViewSpec | None
    view_interpolation: str | None
    settings: CacheSettings
    shards: ShardSettings
    compute: ComputeSettings
    planning: PlanSettings
    hours: Hours
    began: float


@dataclass(frozen=True)
class _Sampled:
    """Shards of a sample, and its entries."""

    shards: ShardSet
    entries: Sequence[Entry]


def make_plan(request: PlanRequest) -> CachePlan:
    """The plan of a corpus that may not be sharded, and of a store that there is not.

    Raises:
        InputError: an empty corpus, a teacher that cannot be loaded, settings that exclude each other, a deadline that cannot be met.
        Unreachable: images cannot be read at the moment.
    """
    for settings in (request.planning, request.settings, request.shards):
        check(settings)
    planning, clock = request.planning, Clock(request.began)
    if request.teacher is not None:
        check(request.teacher, "teacher")
        load_teacher(request.teacher)
    clock.lap("loading")
    corpus = _look(request)
    with scratch_folder() as scratch:
        sampled = _sampled(corpus, scratch / "shards")
        clock.lap("sample")
        if request.teacher is None:
            tried, vectors = _without_teacher(request, corpus)
        else:
            tried, vectors = _with_teacher(request, request.teacher, corpus, sampled, scratch / "store", clock)
        tried.shards = _shard_sizes(corpus, sampled)
        tried.pairs = None if corpus.is_drawn else _pairs(sampled, tried, planning.seconds)
    bundle = None
    if planning.student is not None:
        bundle = bundle_bytes(planning.student, planning.recipe, tried.description.spec, vectors)
    names = {"corpus": ", ".join(request.corpus) or "none", "teacher": getattr(request.teacher, "model", "none")}
    return assembled(names, corpus, tried, planning, request.hours, bundle=bundle)


def plan_of_cache(
    shards: Location | str,
    config: TeacherConfig,
    *,
    out: Location | str,
    views: ViewSpec | None,
    settings: CacheSettings,
    compute: Compute,
    view_interpolation: str | None,
    hours: Hours,
    began: float,
) -> CachePlan:
    """The plan of exactly that command, for a store that is new or begun. Nothing is written but a scratch folder.

    Raises:
        InputError, MismatchError: as `plan_cache`; the store was begun with other settings.
    """
    clock = Clock(began)
    stage = plan_cache(
        shards,
        config,
        out=out,
        views=views,
        settings=settings,
        compute=compute,
        view_interpolation=view_interpolation,
        dry_run=True,
    )
    clock.lap("loading")
    ledger, units = Ledger(stage.store, stage.name), list(stage.plan())
    ledger.check(
        Plan(stage=stage.name, fingerprint=stage.fingerprint, units=len(units), rows=stage.spec.num_samples),
        hint=f"use the options of the first run, or {another_output(stage.store, stage.name)}",
    )
    done = set() if ledger.plan() is None else ledger.intact_keys()
    corpus = look_at_shards(stage.shards, most=_SAMPLE)
    with scratch_folder() as scratch:
        sampled = _sampled(corpus, scratch / "shards")
        store = scratch / "store"
        if stage.vectors is not None:
            _put_vectors(store, stage.vectors, read_origin(open_store(stage.store), stage.store))
        targets = ",".join(target.name for target in stage.spec.targets)
        small = plan_cache(
            sampled.shards.location,
            config,
            out=store,
            views=stage.views,
            settings=replace(_as_floats(settings), targets=targets, batch_size=stage.batch_size),
            compute=stage.compute,
            view_interpolation=stage.views.interpolation,
        )
        clock.lap("sample")
        tried = _timed(small, PlanSettings(), clock, hours.on_ray)
        tried.description, tried.vectors = stage.description, _vectors_there(stage.store)
        sample = SampledTargets(block=tried.block, basis={}, vectors=stage.vectors)
        tried.encodings = tell_encodings(stage.spec, sample, stage.notes)
        tried.shards, tried.pairs = _shard_sizes(corpus, sampled), _pairs(sampled, tried, PlanSettings.seconds)
    left = [unit for unit in units if unit.key not in done]
    hours = replace(hours, shards=len(left), rows=sum(unit.rows for unit in left))
    names = {"corpus": str(stage.shards.location), "teacher": config.model, "store": str(stage.store)}
    plan = assembled(names, corpus, tried, PlanSettings(), hours)
    if not done:
        return plan
    written = sum(o.bytes for receipt in ledger.receipts() if receipt.key in done for o in receipt.outputs)
    chunks = plan.store.sizes.chunk_bytes
    size = Figure.of(max(0.0, chunks.value - written) if left else 0.0, chunks)
    return replace(plan, left=Left(shards=len(left), rows=hours.rows or 0, bytes=size))


def _look(request: PlanRequest) -> PlannedCorpus:
    """The corpus, by whatever names it.

    Raises:
        InputError: none, or both a corpus and a number of images.
    """
    planning, shards = request.planning, request.shards
    most = _SMALL_SAMPLE if request.teacher is None else max(_SAMPLE, _rows_to_fit(request))
    if not request.corpus:
        if planning.images is None:
            raise InputError(
                "nothing to plan for",
                code="option-needs-another",
                expected="a corpus, or --images N",
                found="neither",
                hint="teachonce plan FOLDER --teacher …, or teachonce plan --images 1000000 --mean-kb 110 --channels 768",
            )
        mean = None if planning.mean_kb is None else planning.mean_kb * 1000
        return drawn_corpus(
            planning.images,
            mean_bytes=mean,
            shard_size=shards.samples_per_shard,
            max_pixels=shards.max_pixels,
            most=16 if request.teacher is None else max(_SMALL_SAMPLE, _rows_to_fit(request)),
        )
    for name, value in (("--images", planning.images), ("--mean-kb", planning.mean_kb)):
        if value is not None:
            raise InputError(
                f"{name} goes without a corpus", code="options-exclude-each-other", where=name, hint="leave one out"
            )
    if len(request.corpus) == 1 and kind_of(Location.of(request.corpus[0])) == Kind.SHARDS:
        return look_at_shards(ShardSet.open(request.corpus[0]), most=most)
    sources = open_sources(request.corpus, max_bytes=shards.max_bytes)
    return look_at_sources(
        sources, shard_size=shards.samples_per_shard, resize=shards.resize, max_pixels=shards.max_pixels, most=most
    )


def _sampled(corpus: PlannedCorpus, out: Location) -> _Sampled:
    """Real shards of the sample: two, or as many as there would be."""
    size = min(corpus.shard_size, -(-len(corpus.picked) // 2))
    sample = freeze_sample(corpus, out, shard_size=size)
    stage = ShardStage(
        out=out,
        sources=first_sources((sample.source,)),
        corpus=sample.corpus,
        kind=kind_named(corpus.sample_kind, where=corpus.name),
        give_up_on_unreachable=True,
    )
    run_here(stage, out)
    shards = ShardSet.open(out)
    bad = [row for receipt in shards.receipts() for row in receipt.invalid_rows]
    if len(bad) == len(sample.entries):
        raise InputError(
            "not one image of the sample can be used",
            code="images-none-usable",
            where=corpus.name,
            expected="at least one usable image",
            found=f"{bad[0].path}: {bad[0].reason}",
            hint="give it images",
        )
    return _Sampled(shards, sample.entries)


def _shard_sizes(corpus: PlannedCorpus, sampled: _Sampled) -> ShardSizes | None:
    if corpus.finished is not None:
        return finished_sizes(corpus)
    if corpus.is_drawn and corpus.image_bytes is None:
        return None
    return shard_sizes(corpus, sampled.shards, sampled.entries)


def _pairs(sampled: _Sampled, tried: Tried, seconds: float) -> Figure:
    """Images a second that a core makes pairs of, in the size that the teacher sees."""
    preprocess = dict(tried.description.teacher).get("preprocess")
    size = preprocess["size"] if isinstance(preprocess, dict) else _USUAL_SIZE
    views = ViewSpec.from_json(tried.description.views)
    return Figure(value=time_pairs(sampled.shards, views, size, seconds / 10), basis=Basis.MEASURED)


def _with_teacher(
    request: PlanRequest,
    config: TeacherConfig,
    corpus: PlannedCorpus,
    sampled: _Sampled,
    store: Location,
    clock: Clock,
) -> tuple[Tried, ClassVectors | None]:
    """Run the teacher on the sample."""
    drawn = _make_vectors(request, config, store)
    vectors = _vectors_there(store)
    clock.lap("vectors")
    small = plan_cache(
        sampled.shards.location,
        config,
        out=store,
        views=request.views,
        settings=_as_floats(request.settings),
        compute=teacher_compute(request.compute),
        view_interpolation=request.view_interpolation,
    )
    clock.lap("loading")
    least = min(_rows_to_fit(request), rows_to_fit(small.spec, request.settings), len(sampled.entries))
    tried = _timed(small, request.planning, clock, request.hours.on_ray, least)
    whole = replace(small.spec, num_samples=corpus.rows, shard_size=corpus.shard_size, parts=corpus.parts)
    tried.vectors = vectors
    if drawn and small.vectors is not None:
        rows, views = len(tried.block.keys), small.views.count
        targets = dict(tried.block.targets) | {LOGITS: stand_in_logits(rows, views, small.vectors.num_classes)}
        tried.block = replace(tried.block, targets=targets)
        tried.basis = {LOGITS: Basis.TABLE}
    _encode(tried, replace(small.description, spec=whole), request.settings, small.vectors)
    return tried, vectors_if_any(open_store(store), store)


def _as_floats(settings: CacheSettings) -> CacheSettings:
    """For a sample: its outputs are encoded afterwards, as often as need be."""
    return replace(settings, encoding=None, max_kl=None, max_bytes=None)


def _encode(tried: Tried, description: StoreDescription, settings: CacheSettings, vectors: ClassVectors | None) -> None:
    """Let the store have the encodings that are asked for.

    Raises:
        InputError: no encodings, or none that can be planned.
    """
    sample = SampledTargets(block=tried.block, basis=tried.basis, vectors=vectors)
    whole, own = choose_own(description.spec, sample, settings)
    spec = new_spec(description.spec, ENCODINGS[whole], {name: choice.encoding for name, choice in own.items()})
    measured = {name: choice.measured.to_json() for name, choice in own.items()}
    tried.description = replace(description, spec=spec, measured=measured or None)
    tried.encodings = tell_encodings(spec, sample, tuple(choice.why for choice in own.values() if choice.why))


def _make_vectors(request: PlanRequest, config: TeacherConfig, store: Location) -> bool:
    """Class vectors in the scratch store, as options say. Returns whether they are nobody's."""
    planning, teacher = request.planning, load_teacher(config)
    if planning.vectors is not None:
        there = Location.of(planning.vectors)
        root = open_store(there)
        _put_vectors(store, read_vectors(root, there), read_origin(root, there))
    elif planning.classes is not None and planning.classes.isdecimal():
        origin = {"teacher": teacher.spec.to_json(), "templates": []}
        _put_vectors(store, stand_in_vectors(_number(planning.classes), teacher.spec.embed_dim), origin)
        return True
    elif planning.classes is not None:
        names = None if planning.classes == "own" else planning.classes
        settings = VectorsSettings(classes=names, templates=planning.templates)
        run_here(plan_vectors(config, out=store, settings=settings), store)
    elif LOGITS in target_names(request.settings.targets):
        raise InputError(
            "logits need class vectors",
            code="option-needs-another",
            where="--targets logits",
            expected="--classes or --vectors",
            found="neither",
            hint="add --classes FILE, or their number",
        )
    return False


def _put_vectors(store: Location, vectors: ClassVectors, origin: object) -> None:
    write_class_vectors(open_root(store.zarr_store(), mode="a", where=store), vectors, origin)  # type: ignore[arg-type]


def _rows_to_fit(request: PlanRequest) -> int:
    """Images whose targets the encodings are fitted to."""
    views = 1 if request.views is None else request.views.count
    return -(-views_to_fit(request.settings) // views)


def _timed(small: CacheStage, planning: PlanSettings, clock: Clock, on_ray: bool, least_rows: int = 0) -> Tried:
    """Time a worker on the sample, on so many of its images at least."""
    begin(small, small.store)
    with cores_of_a_worker(small.resources, on_ray):
        worker = small.open()
        clock.lap("opening")
        try:
            keep = max(2 * fitting_rows(small.spec), least_rows)
            units = list(small.plan())
            found = time_teacher(worker, units, planning.seconds, keep_rows=keep, least_rows=least_rows)
        finally:
            worker.close()
    share = f"{found.views:,} views in {found.seconds:.1f} s" if found.views else "one batch alone, the first"
    return Tried(
        description=small.description,
        block=found.block,
        vectors=(0, Figure(value=0, basis=Basis.COUNTED)),
        rate=Figure(value=found.views_per_second, basis=Basis.MEASURED),
        timed=f"{share}; {small.compute.device}, {small.compute.precision}, batches of {small.batch_size}, "
        f"{small.compute.threads} thread{'s' if small.compute.threads > 1 else ''}",
        loading=clock.seconds["loading"],
        opening=clock.seconds["opening"] + found.first_seconds,
        needs=small.resources,
    )


def _vectors_there(store: Location) -> tuple[int, Figure]:
    """What the class vectors of a store take that is there, with what `vectors` keeps of its run."""
    folders = [store / name for name in store.names() if name.startswith("class_")]
    sizes = [folder_bytes(folder) for folder in (*folders, Ledger(store, "vectors").folder)]
    return sum(files for files, _ in sizes), Figure(value=sum(size for _, size in sizes), basis=Basis.COUNTED)


def _without_teacher(request: PlanRequest, corpus: PlannedCorpus) -> tuple[Tried, ClassVectors | None]:
    """Outputs that stand in for a teacher's.

    Raises:
        InputError: neither classes nor channels say how large targets are; a target that takes a teacher.
    """
    planning, settings = request.planning, request.settings
    vectors, channels = None, planning.channels
    if planning.vectors is not None:
        there = Location.of(planning.vectors)
        vectors = read_vectors(open_store(there), there)
        channels = channels or vectors.embed_dim
    classes = vectors.num_classes if vectors is not None else _classes(planning)
    sizes = {EMBEDDING: channels, LOGITS: classes}
    names = target_names(settings.targets)
    if names == ("auto",):
        names = (LOGITS,) if classes is not None and (channels is None or classes <= channels) else (EMBEDDING,)
    axes = {EMBEDDING: "channel", LOGITS: "class"}
    for name in names:
        if sizes.get(name) is None:
            needed = {EMBEDDING: "--channels D", LOGITS: "--classes C"}.get(name)
            raise InputError(
                "the size of a target is not known",
                code="option-needs-another",
                where=f"--targets {name}",
                expected=" or ".join(filter(None, ("--teacher", needed))),
                found="neither" if needed else "no teacher",
                hint=f"add {needed or '--teacher'}",
            )
    views, encoding = request.views or ViewSpec(), ENCODINGS[DEFAULT]
    bare = StoreSpec(
        num_samples=corpus.rows,
        shard_size=corpus.shard_size,
        num_views=views.count,
        targets=tuple(
            TargetSpec(name=name, axes=("sample", "view", axes[name]), shape=(sizes[name] or 0,)) for name in names
        ),
        encoding=encoding,
        colors=views.has_colors,
        drawing=views.drawing if settings.view_params_of_new == DERIVED else None,
    )
    spec = new_spec(bare, encoding)
    description = StoreDescription(spec=spec, fingerprint={}, views=views.to_json(), teacher={}, shards="")
    if vectors is None and classes is not None and channels is not None:
        vectors = stand_in_vectors(classes, channels)
    tried = Tried(
        description=description,
        block=stand_in_block(spec, views, fitting_rows(spec)),
        vectors=(0, Figure(value=0, basis=Basis.COUNTED)) if vectors is None else vectors_size(vectors, Basis.TABLE),
        basis=dict.fromkeys(("view_params", "view_colors", *names), Basis.TABLE),
    )
    _encode(tried, description, settings, None)
    return tried, vectors


def _classes(planning: PlanSettings) -> int | None:
    if planning.classes is None:
        return None
    if planning.classes.isdecimal():
        return _number(planning.classes)
    if planning.classes == "own":
        raise InputError(
            "no teacher whose own classes these are",
            code="option-needs-another",
            where="--classes own",
            expected="--teacher",
            found="none",
            hint="add --teacher, or give the number of classes",
        )
    return len(read_classes(planning.classes))


def _number(classes: str) -> int:
    if int(classes) < 1:
        raise InputError("an empty class list", code="class-list-empty", where="--classes", found=classes)
    return int(classes)
