"""`teachonce cache`: runs the frozen teacher once over every view of every sample and stores its targets."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import MemoryStore

from ..pipeline.ledger import Ledger
from ..pipeline.output import another_output, check_output, claim_output
from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..pipeline.types import Resources, Unit
from ..storage_schemas.block_part import WHOLE, BlockPart
from ..storage_schemas.class_vectors import ClassVectors, origin_model
from ..storage_schemas.encodings import ENCODINGS, Encoding
from ..storage_schemas.encodings.floats import FloatEncoding
from ..storage_schemas.errors import InputError, MismatchError
from ..storage_schemas.fingerprint import Fingerprint, Json
from ..storage_schemas.generations import Generations
from ..storage_schemas.growth import FIRST, Growth
from ..storage_schemas.params_form import DERIVED, STORED
from ..storage_schemas.plain_text import typed
from ..storage_schemas.samples import shard_name
from ..storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from ..storage_schemas.target_store import BlockWriter, check_version, create_arrays, open_root
from .caching.first_rows import TeacherSample, choose_encodings
from .corpora.shards import ShardSet
from .encodings.budget import Budget, Choice
from .encodings.request import DEFAULT, EncodingRequest
from .growth.room import arrays_of
from .models.compute import Compute, keep_freed_memory
from .models.teacher_config import TeacherConfig
from .pairs.beside import refuse_other_corpus_beside
from .pairs.receipts import CACHE
from .pairs.store import open_store, read_description, read_vectors, store_receipts, vectors_if_any
from .pairs.store_root import refuse_lost_root
from .samples.kind import SampleKind
from .samples.pixel_sample import PixelSample
from .samples.registry import check_derivable, check_kind, kind_named
from .settings.cache import CacheSettings
from .teachers import Teacher, TeacherSpec, load_teacher
from .teachers.base import Offer
from .teachers.offers import LOGITS, Answers, choose_offers, target_names
from .teachers.placing import place, settle_precision
from .teachers.same_weights import check_weights
from .views.spec import ViewSpec
from .views.versions import other_versions, versions_text

if TYPE_CHECKING:  # it imports torch
    from .caching.worker import CacheWorker


@dataclass(frozen=True, kw_only=True)
class CacheStage:
    """Shard *i* of the corpus becomes row block *i* of every array of the store.

    Attributes:
        pixels: rendered views of the corpus; a worker that renders them otherwise does nothing.
        asked: what was asked of the encodings (`EncodingRequest.to_json`); None where the store has one for all targets.
        measured: what the encodings cost, by target.
        growth: of the generation that it makes; None for a store's first one.
        before: the generation that this one comes of; None for a store's first one.
        notes: lines that a person should see before it starts.
    """

    shards: ShardSet
    store: Location
    config: TeacherConfig
    teacher: TeacherSpec
    views: ViewSpec
    spec: StoreSpec
    vectors: ClassVectors | None
    compute: Compute
    batch_size: int
    pixels: PixelSample
    asked: Json = None
    measured: Mapping[str, Json] | None = None
    growth: Growth | None = None
    before: StoreDescription | None = None
    notes: tuple[str, ...] = ()

    name = CACHE

    @property
    def part(self) -> BlockPart:
        """What of each shard's block it makes."""
        if self.growth is None or self.before is None or self.growth.what in ("images", "mended"):
            return WHOLE
        if self.growth.what == "views":
            return BlockPart(first_view=self.before.spec.num_views, rows=False)
        there = {target.name for target in self.before.spec.targets}
        new = tuple(target.name for target in self.spec.targets if target.name not in there)
        return BlockPart(targets=new, rows=False, params=False)

    @property
    def mended(self) -> frozenset[int] | None:
        """The rows that the teacher sees, where all others keep what they have; None for all that can be used."""
        if self.growth is None or self.before is None or self.growth.what != "mended":
            return None
        then = self.shards.as_of(self.before.corpus_id)
        assert then is not None  # it is a state of the corpus that came before
        return frozenset(then.changed_since(self.shards.corpus.corpus_id)[0])

    @property
    def copied(self) -> int:
        """Shards whose rows are written anew as they are stored, from the first one on: where more images take arrays of their own."""
        is_anew = self.growth is not None and self.growth.what == "images" and self.growth.wrote(0)
        return self.before.spec.num_shards if is_anew and self.before is not None else 0

    @property
    def resources(self) -> Resources:
        cpus = self.compute.threads + (self.compute.decode_workers or 0)
        return Resources(cpus=cpus, gpus=float(self.compute.device == "cuda"), units_at_once=2)

    @property
    def fingerprint(self) -> Fingerprint:
        fields: dict[str, Json] = {
            "schema_version": self.spec.version,
            "corpus_id": self.shards.corpus.corpus_id,
            "teacher": {
                "model": self.teacher.model,
                "architecture": self.teacher.architecture,
                "weights": self.teacher.weights_digest,
                "preprocess": self.teacher.preprocess.to_json(),
            },
            "views": self.views.to_json(),
            "pixels": self.pixels.digest,
            "targets": [target.name for target in self.spec.targets],
            "encoding": self._encoding,
            "compute": self.compute.to_json() | {"batch_size": self.batch_size},
        }
        if self.vectors is not None:
            fields["class_vectors"] = self.vectors.digest
        if self.spec.views_together < self.spec.num_views:
            fields["chunk_views"] = self.spec.views_together
        if self.spec.view_params != STORED:
            fields["view_params"] = self.spec.view_params
        if self.growth is not None and self.before is not None:
            parent = Fingerprint(fields=self.before.fingerprint)
            fields["growth"] = {"what": self.growth.what, "parent": parent.digest}
        return Fingerprint(fields=fields)

    @property
    def _encoding(self) -> Json:
        if self.asked is None:
            return self.spec.encoding.name
        return {"asked": self.asked, **{t.name: self.spec.encoding_of(t).to_json() for t in self.spec.targets}}

    def plan(self) -> Iterator[Unit]:
        for shard in range(self.spec.num_shards) if self.growth is None else self.growth.all_shards:
            rows = self.spec.rows(shard)
            yield Unit(key=shard_name(shard), rows=rows.stop - rows.start, inputs={"shard": shard})

    @property
    def description(self) -> StoreDescription:
        """What the store records when its arrays are made."""
        return StoreDescription(
            spec=self.spec,
            fingerprint=self.fingerprint.fields,
            views=self.views.to_json(),
            teacher=self.teacher.to_json(),
            shards=self.shards.location.address,
            pixels=self.pixels.to_json(),
            versions=other_versions(),
            sample_kind=self.kind.name,
            growth=self.growth,
            measured=self.measured,
        )

    def create(self) -> None:
        """Make the store's arrays. The driver's work, before any worker starts; never once the ledger has a plan."""
        create_arrays(open_root(self.store.zarr_store(), mode="a", where=self.store), self.description)

    def open(self) -> CacheWorker:
        """
        Raises:
            MismatchError: this machine renders otherwise, has other weights, or the arrays are another run's.
        """
        import torch

        from .caching.mending import MendingWriter
        from .caching.worker import VIEWS_MODULE, CacheWorker

        mended, copied = self.mended, self.copied
        only: Collection[int] | None = range(self.spec.rows(copied).start, self.spec.num_rows) if copied else mended
        if self.compute.device == "cpu":
            keep_freed_memory()
        pool = self.compute.pool(VIEWS_MODULE)  # starts while the teacher is loaded
        try:
            self.pixels.check(
                self.shards, self.views, where=self.store, hint="give every node the same versions of everything"
            )
            teacher = load_teacher(self.config)
            check_weights(teacher.spec, self.teacher.weights_digest, where=self.config.model)
            device = torch.device(self.compute.device)
            answers = Answers.of(place(teacher, self.compute), self.vectors, device)
            root = open_root(self.store.zarr_store(), mode="a", where=self.store)
            self._recorded(root).check_planned(self.fingerprint, where=self.store)
        except BaseException:
            pool.close()
            raise
        return CacheWorker(
            shards=self.shards,
            store=self.store,
            arrays=arrays_of(root, self.growth),
            spec=self.spec,
            views=self.views,
            size=self.teacher.preprocess.size,
            answers=answers,
            compute=self.compute,
            batch_size=self.batch_size,
            fingerprint=self.fingerprint.digest,
            pool=pool,
            part=self.part,
            before=store_receipts(self.store, self.before.generation)
            if self.before is not None and (only is not None or not self.part.rows)
            else None,
            copied=copied,
            only=only,
            writer=BlockWriter
            if only is None or self.before is None
            else MendingWriter.of(open_store(self.store, self.before.generation), only, copied=copied),
        )

    def _recorded(self, root: Any) -> StoreDescription:
        """What the store has of the generation that it makes."""
        generations = Generations.read(root, self.store)
        if self.growth is None or generations is None:
            return read_description(open_store(self.store, FIRST), self.store)
        return generations.described.get(self.growth.name) or generations.one(self.growth.name, self.store)

    @property
    def kind(self) -> SampleKind:
        return kind_named(self.shards.corpus.sample_kind, where=self.shards.location)


def plan_cache(
    shards: Location | str,
    config: TeacherConfig,
    *,
    out: Location | str,
    views: ViewSpec | None = None,
    settings: CacheSettings | None = None,
    compute: Compute,
    view_interpolation: str | None = None,
    dry_run: bool = False,
) -> CacheStage:
    """The stage that caches a teacher's targets; makes the store's arrays if they are not there.

    Args:
        shards: folder of finished shards.
        config: the teacher.
        out: the target store.
        views: None for the teacher's own centre crop.
        settings: None for the defaults.
        compute: device, precision, threads.
        view_interpolation: resampling filter of random views; None for the teacher's.
        dry_run: nothing is written; what is there is only read.

    Raises:
        InputError: bad shards or teacher; logits requested without class vectors.
        MismatchError: samples of another kind than the teacher's; the store was begun where views were rendered otherwise. What else it may not fit (another
            teacher, corpus, view spec, …) is for the runner to refuse, by the fingerprint.
    """
    settings = settings or CacheSettings()
    asked = open_asked(shards, config, out=out, settings=settings, dry_run=dry_run)
    shard_set, store, teacher, root = asked.shards, asked.store, asked.loaded.spec, asked.root
    vectors = vectors_for(root, store, teacher, settings.targets)
    offers = choose_offers(asked.loaded, vectors, settings.targets)
    check_derivable(settings.view_params, shard_set.corpus.sample_kind, shard_set.location)
    if views is None:
        views = teacher.preprocess.center_view()
    else:
        views = replace(views, interpolation=view_interpolation or teacher.preprocess.interpolation)
    together = min(settings.chunk_views or views.count, views.count)
    request = EncodingRequest.of(
        [offer.name for offer in offers],
        settings.encoding,
        budget=Budget(max_kl=settings.max_kl, max_bytes=settings.max_bytes),
        fit_views=settings.fit_views,
    )
    plan = Ledger(store, CACHE).plan()
    whole = request.of_all
    # Of a store that was begun they are its own, if the same was asked of it; else the fingerprints differ.
    choices = {} if whole is not None or plan is not None else _choices(request, offers, asked, vectors, views, compute)
    encoding = ENCODINGS[DEFAULT] if whole is None else whole
    own = {name: choice.encoding for name, choice in choices.items()}
    spec = StoreSpec(
        num_samples=shard_set.corpus.num_samples,
        shard_size=shard_set.corpus.shard_size,
        num_views=views.count,
        targets=tuple(target_of(offer, shard_set, together, encoding, own.get(offer.name)) for offer in offers),
        encoding=encoding,
        colors=views.has_colors,
        parts=shard_set.corpus.layout.parts,
        chunk_views=together if together < views.count else None,
        drawing=views.drawing if settings.view_params_of_new == DERIVED else None,
    )
    described = None if plan is None else read_description(open_store(store, FIRST), store)
    if described is not None and (whole is None or _same_rows(described.spec, spec)):
        spec = described.spec  # a store keeps the chunks that it was begun with, and what it was fitted to
    recorded = None if described is None else PixelSample.of_store(described, store)
    stage = asked.stage(
        views,
        spec,
        vectors,
        compute,
        begun=None if plan is None else plan.fingerprint.fields,
        pixels=recorded or PixelSample.take(shard_set, views, teacher.preprocess.size),
    )
    if whole is None:
        stage = replace(
            stage,
            asked=request.to_json(),
            measured={name: choice.measured.to_json() for name, choice in choices.items()} or None,
            notes=(*stage.notes, *(choice.why for choice in choices.values() if choice.why)),
        )
    if plan is None or described is None:
        if not dry_run:
            stage.create()
        return stage
    differences = stage.fingerprint.differences(plan.fingerprint.fields)
    differing = {name for name, *_ in differences}
    if differing <= GROWABLE and differing & GROWS_BY:
        stage.fingerprint.check(
            plan.fingerprint.fields,
            what=f"{store} holds the output of another cache",
            code="output-other-settings",
            where=store,
            hint=f"add --grow to make the store larger, or {another_output(store, CACHE)}",
            whose=("this command", "the store"),
        )
    if recorded is not None and not differences:
        recorded.check(
            shard_set,
            views,
            where=store,
            hint="give another --out; a store is finished by machines that render as the first one",
        )
        stage = replace(stage, notes=stage.notes + _other_versions(described, recorded, stage.kind))
    return stage


def _choices(
    request: EncodingRequest,
    offers: Sequence[Offer],
    asked: Asked,
    vectors: ClassVectors | None,
    views: ViewSpec,
    compute: Compute,
) -> dict[str, Choice]:
    """The encodings of a new store's targets, fitted and measured."""
    compute, _ = settle_precision(asked.loaded, compute, None)
    sample = TeacherSample(
        shards=asked.shards,
        teacher=asked.loaded,
        vectors=vectors,
        views=views,
        compute=compute,
        batch_size=asked.settings.batch_on(compute.device),
    )
    return choose_encodings(request, offers, sample)


def _root(store: Location, dry_run: bool) -> zarr.Group:
    """The store's group, made where there is none; in a dry run such a new one lies in memory."""
    if not dry_run:
        return open_root(store.zarr_store(), mode="a", where=store)
    if (store / "zarr.json").exists():
        return open_root(store.zarr_store(read_only=True), where=store)
    return open_root(MemoryStore(), mode="a", where=store)


#: Fields of the fingerprint in which a store may grow; those that follow from others are among them.
GROWABLE = {
    "schema_version",
    "corpus_id",
    "views.count",
    "pixels",
    "targets",
    "class_vectors",
    "chunk_views",
}


#: Those of them that a person changes to make a store larger.
GROWS_BY = {"corpus_id", "views.count", "targets", "class_vectors"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Shards, teacher and store that a command names, opened and found to fit.

    Attributes:
        root: the store's group, for writing.
    """

    shards: ShardSet
    store: Location
    config: TeacherConfig
    loaded: Teacher
    settings: CacheSettings
    root: Any

    def stage(
        self,
        views: ViewSpec,
        spec: StoreSpec,
        vectors: ClassVectors | None,
        compute: Compute,
        *,
        begun: Mapping[str, Json] | None,
        pixels: PixelSample,
    ) -> CacheStage:
        """The stage for a whole store.

        Args:
            begun: fingerprint of what is there; None where there is nothing.
        """
        compute, precision_note = settle_precision(self.loaded, compute, begun)
        return CacheStage(
            shards=self.shards,
            store=self.store,
            config=self.config,
            teacher=self.loaded.spec,
            views=views,
            spec=spec,
            vectors=vectors if any(target.name == LOGITS for target in spec.targets) else None,
            compute=compute,
            batch_size=self.settings.batch_on(compute.device),
            pixels=pixels,
            notes=(f"teacher {self.loaded.loaded}", *precision_note),
        )


def open_asked(
    shards: Location | str,
    config: TeacherConfig,
    *,
    out: Location | str,
    settings: CacheSettings,
    dry_run: bool = False,
) -> Asked:
    """Open what a command names; `out` is a store from then on, but for a dry run."""
    check(settings)
    check(config, "teacher")
    store = Location.of(out)
    models = (config.model, config.pretrained, config.backbone)
    check_output(store, CACHE, inputs=(shards,), names=models)
    refuse_lost_root(store)
    shard_set = ShardSet.open(shards)
    _refuse_unusable(shard_set)
    loaded = load_teacher(config)
    check_kind(
        shard_set.corpus.sample_kind,
        loaded.spec.preprocess.sample_kind,
        where=shard_set.location,
        expected_by="the teacher",
    )
    refuse_other_corpus_beside(store, shard_set)
    if not dry_run:
        claim_output(store, CACHE)
    root = _root(store, dry_run)
    check_version(root, where=store)
    return Asked(shards=shard_set, store=store, config=config, loaded=loaded, settings=settings, root=root)


def target_of(
    offer: Offer, shards: ShardSet, num_views: int, encoding: FloatEncoding, own: Encoding | None = None
) -> TargetSpec:
    """A target of a new store.

    Args:
        encoding: the store's.
        own: the target's, if it has one of its own.
    """
    return TargetSpec.of(
        offer.name,
        offer.axes,
        offer.shape,
        shard_size=shards.corpus.shard_size,
        num_rows=shards.corpus.num_rows,
        num_views=num_views,
        encoding=own or encoding,
        own=own is not None,
    )


def _same_rows(one: StoreSpec, other: StoreSpec) -> bool:
    """Whether they differ in chunks at most."""

    def without(spec: StoreSpec) -> StoreSpec:
        return replace(spec, targets=tuple(replace(target, chunk=None) for target in spec.targets))

    return without(one) == without(other)


def _refuse_unusable(shards: ShardSet) -> None:
    for shard in range(shards.corpus.num_shards):
        receipt = shards.receipt(shard)
        if len(receipt.invalid_rows) < receipt.rows:
            return
    raise InputError(
        "not one image can be used",
        code="images-none-usable",
        where=shards.location,
        expected="at least one usable image",
        found=f"{shards.corpus.num_samples} unusable",
        hint=f"see `teachonce status {typed(shards.location)}`",
    )


def _other_versions(described: StoreDescription, recorded: PixelSample, kind: SampleKind) -> tuple[str, ...]:
    """The note where a store was begun with other versions of the libraries."""
    there = {**recorded.versions, **(described.versions or {})}
    here = {**kind.versions(), **other_versions()}
    if there == here:
        return ()
    return (
        f"the store was begun with other versions ({versions_text(there, here)}); pixels are the same, but low bits "
        "of targets may differ",
    )


def vectors_for(root: Any, store: Location, teacher: TeacherSpec, targets: str) -> ClassVectors | None:
    names = target_names(targets)
    needs = LOGITS in names
    if not needs and names != ("auto",):
        return None
    vectors = read_vectors(root, store) if needs else vectors_if_any(root, store)
    if vectors is None:
        return None
    origin = origin_model(root, store)
    if origin.weights_digest != teacher.weights_digest:
        raise MismatchError(
            "the store's class vectors are another teacher's",
            code="vectors-other-teacher",
            where=f"{store}: field 'teacher.weights'",
            expected=f"{teacher.model} {teacher.weights_digest} (this teacher)",
            found=f"{origin.model} {origin.weights_digest} (the class vectors)",
            hint="use that teacher, or another --out",
        )
    return vectors
