"""Growth of a store by `teachonce cache --grow`: more views, more images, more targets; what is there is not computed again."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace

from ..pipeline.storage import Location
from ..pipeline.types import Stage
from ..storage_schemas.encodings import Encoding
from ..storage_schemas.errors import MismatchError
from ..storage_schemas.fingerprint import Fingerprint
from ..storage_schemas.generations import Generations, added_text, asked_encodings
from ..storage_schemas.growth import Growth, What, ranges
from ..storage_schemas.plain_text import counted
from ..storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from ..storage_schemas.target_store import array_names, table_names
from .cache import GROWABLE, Asked, CacheStage, open_asked, target_of, vectors_for
from .caching.first_rows import TeacherSample, choose_encodings
from .corpora.shards import ShardSet
from .encodings.budget import Budget, Rows, choices
from .encodings.request import EncodingRequest
from .growth.derived import DerivedStage
from .growth.encodings import Added, asked_with, first_logits, growth_request
from .growth.room import Step, make_room, refuse_no_growth, refuse_off_chunks, show_generation
from .models.compute import Compute
from .models.teacher_config import TeacherConfig
from .pairs.receipts import CACHE, ledger_name
from .pairs.store import open_store, read_generations, read_vectors, store_receipts
from .samples.pixel_sample import PixelSample
from .settings.cache import CacheSettings
from .teachers.base import Offer
from .teachers.offers import EMBEDDING, LOGITS, choose_offers, target_names
from .views.spec import ViewSpec


@dataclass(frozen=True, kw_only=True)
class GenerationStage(CacheStage):
    """What one generation of a store adds."""

    name = f"{CACHE} --grow"

    @property
    def ledger(self) -> str:
        """The name of its ledger."""
        return ledger_name(self.description.generation)

    def commit(self) -> None:
        """Let readers have the generation."""
        show_generation(self.store, self.description.generation)


def plan_growth(
    shards: Location | str,
    config: TeacherConfig,
    *,
    out: Location | str,
    views: ViewSpec | None = None,
    settings: CacheSettings | None = None,
    compute: Compute,
    view_interpolation: str | None = None,
) -> Iterator[Step]:
    """The generations that a store needs to become what is asked for, one after the other; `finish` each before the next is taken.

    Where it is that already, those that it has grown by, so that lost shards are made again.

    Args:
        shards: folder of its shards, which may have grown.
        config: its teacher.
        out: the finished store.
        views: more of its views; None for as many as there are.
        settings: `targets` are those to add, if there are any that it does not have.
        compute, view_interpolation: see `plan_cache`.

    Raises:
        IncompleteError: the store is not finished.
        MismatchError: anything else differs from what the store was made with, by name; or it cannot grow so.
    """
    settings = settings or CacheSettings()
    asked = open_asked(shards, config, out=out, settings=settings)
    generations = read_generations(asked.store)
    current = generations.one(None, asked.store)
    _refuse_recoded(current, asked.store)
    store_receipts(asked.store).require_complete()
    wanted = _wanted(asked, current, views, compute, view_interpolation)
    _refuse_others(wanted, current, settings)
    made = False
    while (step := _next(asked, wanted)) is not None:
        made = True
        yield step
    if not made:
        yield from _there(asked, wanted, read_generations(asked.store))


def _wanted(
    asked: Asked,
    current: StoreDescription,
    views: ViewSpec | None,
    compute: Compute,
    view_interpolation: str | None,
) -> CacheStage:
    """The stage that would make the whole store at once."""
    store, corpus = asked.store, asked.shards.corpus
    if views is None:
        views = ViewSpec.from_json(current.views, where=store)
    else:
        views = replace(views, interpolation=view_interpolation or asked.loaded.spec.preprocess.interpolation)
    there = [target.name for target in current.spec.targets]
    more = [name for name in target_names(asked.settings.targets) if name not in (*there, "auto")]
    names = ",".join([*there, *more])
    vectors = vectors_for(open_store(store), store, asked.loaded.spec, names)
    offers = {offer.name: offer for offer in choose_offers(asked.loaded, vectors, names)} if more else {}
    together = current.spec.views_together
    new = tuple(target_of(offers[name], asked.shards, together, current.spec.encoding) for name in more)
    spec = replace(
        current.spec,
        num_samples=corpus.num_samples,
        shard_size=corpus.shard_size,
        parts=corpus.layout.parts,
        num_views=views.count,
        targets=current.spec.targets + new,
        chunk_views=together if together < views.count else None,
        drawing=None if current.spec.drawing is None else views.drawing,
    )
    then = asked.shards.as_of(current.corpus_id)
    replaced = set() if then is None else then.changed_since()[1]  # the sample may have one of them
    pixels = None if replaced else PixelSample.of_store(current, store)
    pixels = pixels or PixelSample.take(asked.shards, views, asked.loaded.spec.preprocess.size)
    return asked.stage(views, spec, vectors, compute, begun=current.fingerprint, pixels=pixels)


def _request(settings: CacheSettings, wanted: CacheStage, current: StoreDescription) -> EncodingRequest:
    """What is asked of the encodings; see `growth_request`."""
    there = {target.name for target in current.spec.targets}
    return growth_request(
        current,
        [target.name for target in wanted.spec.targets if target.name not in there],
        encoding=settings.encoding,
        budget=Budget(max_kl=settings.max_kl, max_bytes=settings.max_bytes),
        fit_views=settings.fit_views,
        default_fit_views=CacheSettings().fit_views,
        store=wanted.store,
    )


def _refuse_recoded(current: StoreDescription, store: Location) -> None:
    if current.recoded is not None:
        raise MismatchError(
            "a store that was recoded grows by classes alone",
            code="growth-of-recoded",
            where=store,
            hint=f"let the store that it was made of grow ({current.recoded['from']}), and `teachonce recode` that into a new one",
        )


def _refuse_others(wanted: CacheStage, current: StoreDescription, settings: CacheSettings) -> None:
    """What is asked for is the store, or more of it."""
    _request(settings, wanted, current)
    fields = dict(wanted.fingerprint.fields) | {"encoding": current.fingerprint["encoding"]}
    hint = "repeat the options that the store was made with, and change what is to grow"
    refuse_no_growth(
        Fingerprint(fields=fields),
        current.fingerprint,
        but=(*sorted(GROWABLE), "growth"),
        store=wanted.store,
        hint=f"{hint}; see `teachonce inspect`",
    )
    spec, there = wanted.spec, current.spec
    for name, expected, found, fits in (
        (
            "view_params",
            there.view_params,
            settings.view_params,
            settings.view_params in (None, there.view_params),
        ),
        ("views.count", f"at least {there.num_views}", spec.num_views, spec.num_views >= there.num_views),
        (
            "chunk_views",
            there.views_together,
            settings.chunk_views,
            settings.chunk_views in (None, there.views_together),
        ),
    ):
        if not fits:
            raise MismatchError(
                "the store cannot grow to this",
                code="growth-other-settings",
                where=f"{wanted.store}: field '{name}'",
                expected=f"{expected} (the store)",
                found=f"{found} (this command)",
                hint="a store never gets smaller; `distill --views` and --generation read a part of it"
                if name == "views.count"
                else f"leave out --{name.replace('_', '-')}: a store keeps what it began with",
            )


def _next(asked: Asked, wanted: CacheStage) -> Step | None:
    """The first generation that the store lacks, with room made for it; None where it lacks none."""
    store = asked.store
    generations = read_generations(store)
    current = generations.one(None, store)
    spec, there = wanted.spec, current.spec
    if wanted.shards.corpus.corpus_id != current.corpus_id:
        return _next_corpus(asked, wanted, generations)
    if spec.num_views > there.num_views:
        refuse_off_chunks(open_store(store), there, store)
        grown = replace(there, num_views=spec.num_views, chunk_views=spec.chunk_views)
        return _begin(asked, wanted, generations, grown, "views")
    names = {target.name for target in there.targets}
    new = [target for target in spec.targets if target.name not in names]
    if new:
        derived = EMBEDDING in names
        first = [new[0]] if derived and new[0].name == LOGITS else [t for t in new if not derived or t.name != LOGITS]
        added = _encodings(asked, wanted, generations, first, from_embeddings=derived and first[0].name == LOGITS)
        grown = replace(there, targets=there.targets + tuple(_target(there, t, added.of[t.name]) for t in first))
        return _begin(asked, wanted, generations, grown, "targets", added=added)
    return None


def _encodings(
    asked: Asked, wanted: CacheStage, generations: Generations, new: Sequence[TargetSpec], *, from_embeddings: bool
) -> Added:
    """The encodings of targets that are added, fitted and measured if need be; those of a growth that was begun stay.

    Args:
        from_embeddings: whether they are logits that the store's embeddings form.
    """
    current, begun = generations.one(None, asked.store), generations.begun
    request, names = _request(asked.settings, wanted, current), [target.name for target in new]
    decided = asked_with(current, request, names)
    measured = dict(current.measured or {})
    if decided is None:
        return Added(of=dict.fromkeys(names, current.spec.encoding), asked=None, measured=measured)
    if begun is not None and asked_encodings(begun) == decided:
        spec = begun.spec
        return Added(
            of={name: spec.encoding_of(spec.target(name)) for name in names},
            asked=decided,
            measured=begun.measured or {},
        )
    if from_embeddings:
        assert wanted.vectors is not None
        count = -(-request.views // current.spec.num_views)
        found = first_logits(asked.store, current, wanted.vectors, count)
        rows = Rows(target=new[0], values=found.logits, keys=found.keys, vectors=wanted.vectors)
        chosen = choices([rows], request.spelled, request.budget)
    else:
        sample = TeacherSample(
            shards=wanted.shards,
            teacher=asked.loaded,
            vectors=wanted.vectors,
            views=wanted.views,
            compute=wanted.compute,
            batch_size=wanted.batch_size,
        )
        offers = [Offer(name=target.name, axes=target.axes[2:], shape=target.shape) for target in new]
        chosen = choose_encodings(request, offers, sample)
    return Added(
        of={name: choice.encoding for name, choice in chosen.items()},
        asked=decided,
        measured=measured | {name: choice.measured.to_json() for name, choice in chosen.items()},
        notes=tuple(choice.why for choice in chosen.values() if choice.why),
    )


def _target(spec: StoreSpec, target: TargetSpec, encoding: Encoding) -> TargetSpec:
    """A target as a store of this spec has it that is made at once."""
    return TargetSpec.of(
        target.name,
        target.axes[2:],
        target.shape,
        shard_size=spec.shard_size,
        num_rows=spec.num_rows,
        num_views=spec.views_together,
        encoding=encoding,
        own=target.encoding is not None or encoding != spec.encoding,
    )


def _next_corpus(asked: Asked, wanted: CacheStage, generations: Generations) -> Step:
    """The generation of a later state of the corpus: the next one, and those behind it that also mended images, or also added some.

    Raises:
        MismatchError: the store is of another corpus; or what it has is less than a shard.
    """
    current = generations.one(None, asked.store)
    store, shards, there = wanted.store, wanted.shards, current.spec
    then = shards.as_of(current.corpus_id)
    if then is None:
        refuse_no_growth(
            Fingerprint(fields={"corpus_id": shards.corpus.corpus_id}),
            {"corpus_id": current.corpus_id},
            but=(),
            store=store,
            hint="give the shards that the store was made from; `teachonce shard --append` adds images to them",
        )
    assert then is not None
    states = shards.corpus.states
    place = next(i for i, state in enumerate(states, 1) if state.corpus_id == current.corpus_id)
    mends = bool(states[place].mended)
    *_, last = itertools.takewhile(lambda state: bool(state.mended) == mends, states[place:])
    later = shards.as_of(last.corpus_id)
    assert later is not None  # it is one of its states
    wanted = replace(wanted, shards=later)
    if mends:
        mended = then.changed_since(last.corpus_id)[0]
        return _begin(asked, wanted, generations, there, "mended", mended)
    grown = replace(there, num_samples=later.corpus.num_samples, parts=later.corpus.layout.parts)
    if there.shard_rows < grown.shard_rows:  # chunks of less than a shard have no room for another one
        grown = replace(grown, targets=tuple(_target(grown, t, grown.encoding_of(t)) for t in grown.targets))
    return _begin(asked, wanted, generations, grown, "images")


def _begin(
    asked: Asked,
    wanted: CacheStage,
    generations: Generations,
    grown: StoreSpec,
    what: What,
    mended: Collection[int] = (),
    added: Added | None = None,
) -> Step:
    """Record the generation, make room for it, and say what is to be done.

    Args:
        added: encodings of the targets that it adds; None for none.
    """
    store, before = asked.store, generations.one(None, asked.store)
    shards = wanted.shards if what in ("images", "mended") else _shards(wanted, before)
    anew = what == "images" and before.spec.shard_rows < grown.shard_rows
    first = before.spec.num_shards if what == "images" and not anew else 0
    written = sorted({row // grown.shard_size for row in mended}) if mended else range(first, grown.num_shards)
    names = {target.name for target in before.spec.targets}
    new = tuple(target.name for target in grown.targets if target.name not in names)
    growth = Growth(
        name=generations.next_name,
        parent=before.generation,
        what=what,
        shards=ranges(list(written)),
        arrays={} if before.growth is None else before.growth.arrays,
        made=(*array_names(grown, new), *table_names(grown, new)),
    )
    if anew:
        places = {name: f"{growth.folder}/{name}" for name in array_names(grown)}
        growth = replace(growth, arrays={**growth.arrays, **places}, made=tuple(places.values()))
    if growth.overlay:
        growth = replace(growth, made=(growth.overlay,))
    added = added or Added(of={}, asked=asked_encodings(before), measured=before.measured or {})
    stage = _stage(wanted, grown, growth, before, shards, added)
    make_room(asked.root, store, generations, stage.description, new)
    note = counted(len(mended), "mended image") if mended else added_text(before, stage.description)
    return _step(stage, growth, f"generation {growth.name}: {note}", *added.notes)


def _shards(wanted: CacheStage, description: StoreDescription) -> ShardSet:
    """The shards as a generation has them."""
    then = wanted.shards.as_of(description.corpus_id)
    assert then is not None  # the corpus of the newest is known by now
    return then


def _stage(
    wanted: CacheStage, spec: StoreSpec, growth: Growth, before: StoreDescription, shards: ShardSet, encodings: Added
) -> CacheStage:
    """The stage that makes one generation."""
    views = replace(ViewSpec.from_json(before.views, where=wanted.store), count=spec.num_views)
    changed = {
        "shards": shards,
        "views": views,
        "spec": spec,
        "growth": growth,
        "before": before,
        "asked": encodings.asked,
        "measured": encodings.measured or None,
        "vectors": wanted.vectors if any(target.name == LOGITS for target in spec.targets) else None,
    }
    return GenerationStage(**({field.name: getattr(wanted, field.name) for field in fields(wanted)} | changed))


def _step(stage: CacheStage, growth: Growth, note: str, *more: str) -> Step:
    """With the teacher, or from its embeddings where these are enough."""
    made: Stage = stage
    assert stage.before is not None
    stored = {target.name for target in stage.before.spec.targets}
    if stage.part.targets == (LOGITS,) and EMBEDDING in stored:
        assert stage.vectors is not None
        made = DerivedStage(
            store=stage.store,
            spec=stage.spec,
            growth=growth,
            vectors=stage.vectors,
            fingerprint=stage.fingerprint,
            batch_size=stage.batch_size,
            threads=stage.compute.threads,
        )
        note += ", from the embeddings"
    return Step(stage=made, store=stage.store, notes=(note, *more))


def _there(asked: Asked, wanted: CacheStage, generations: Generations) -> Iterator[Step]:
    """The generations that the store has grown by, as far as this command makes such."""
    chain = generations.chain(generations.current)
    for before, description in itertools.pairwise(chain):
        growth = description.growth
        if growth is None or growth.what not in ("views", "images", "targets", "mended"):
            continue
        vectors = read_vectors(open_store(asked.store, growth.name), asked.store) if wanted.vectors else None
        pixels = PixelSample.of_store(description, asked.store) or wanted.pixels
        stage = _stage(
            replace(wanted, vectors=vectors, pixels=pixels),
            description.spec,
            growth,
            before,
            _shards(wanted, description),
            Added(of={}, asked=asked_encodings(description), measured=description.measured or {}),
        )
        yield _step(stage, growth, f"generation {growth.name} is there: {counted(stage.spec.num_views, 'view')}")
