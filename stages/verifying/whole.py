"""Owns what concerns shards and store as a whole: what describes them, against itself, each other and the class vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors, origin_model
from ...storage_schemas.errors import DamagedError, IncompleteError, InputError, MismatchError, TeachonceError
from ...storage_schemas.fingerprint import Fingerprint, Json
from ...storage_schemas.lost import lost_before
from ...storage_schemas.plain_text import counted, typed
from ...storage_schemas.samples import shard_name
from ...storage_schemas.store_description import StoreDescription
from ..corpora.shards import ShardSet
from ..pairs.join import as_made
from ..pairs.receipts import VECTORS_UNIT, StoreReceipts
from ..pairs.store import open_store, read_description, read_generations, read_vectors, store_receipts, vectors_ledger
from ..samples.pixel_sample import PixelSample
from ..views.spec import ViewSpec
from .finding import Findings
from .ledgers import strangers, unfinished
from .shard_folder import described_shards, shard_strangers


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Shards and store that belong together, as far as what describes them says so; can be pickled.

    Attributes:
        receipts: of the store's rows, as of the generation that is looked at.
        vectors: None where the store has none, or they are damaged.
    """

    shards: ShardSet
    store: Location
    description: StoreDescription
    views: ViewSpec
    receipts: StoreReceipts
    vectors: ClassVectors | None

    @property
    def generation(self) -> str:
        """The name of the one that is looked at."""
        return self.description.generation

    @cached_property
    def lost(self) -> Mapping[str, Json]:
        """What each target's values had lost before this store encoded them; see `storage_schemas.lost`."""
        chain = read_generations(self.store).chain(self.generation)
        return {target.name: lost_before(chain, target.name) for target in self.description.spec.targets}

    @property
    def num_shards(self) -> int:
        """Of the store."""
        return self.description.spec.num_shards

    def rows(self, shard: int) -> range:
        """The rows of a shard."""
        here = self.description.spec.rows(shard)
        return range(here.start, here.stop)

    @property
    def store_ledger(self) -> Ledger:
        """Of the first generation."""
        return self.receipts.ledgers[0]

    @property
    def recorded_compute(self) -> Mapping[str, Any]:
        """How its teacher computed, as far as that is recorded."""
        return recorded_compute(self.description.fingerprint)


def recorded_compute(fingerprint: Mapping[str, Json]) -> Mapping[str, Any]:
    """How a store's teacher computed, as far as its fingerprint says."""
    compute = fingerprint.get("compute")
    return compute if isinstance(compute, dict) else {}


def look_at_whole(
    shards: Location | str, store: Location | str, generation: str | None = None
) -> tuple[Whole | None, Findings]:
    """The two, and what is wrong with what describes them; None where it is so wrong that their shards cannot be compared.

    Args:
        generation: of the store; None for the current one.

    Raises:
        InputError: no shards, or no store there; no such generation.
    """
    findings, location = Findings(), Location.of(store)
    shard_set = described_shards(shards, findings)
    try:
        root = open_store(location, generation)
        description = read_description(root, location)
        views = ViewSpec.from_json(description.views, where=location)
        receipts = store_receipts(location, description.generation)
    except InputError:
        raise
    except TeachonceError as error:
        findings.note(error)
        return None, findings
    findings.note_all(_contradictions(description, location))
    vectors: ClassVectors | None = None
    try:
        vectors = read_vectors(root, location)
        findings.note_all(_of_vectors(vectors, description, root, location))
    except IncompleteError as error:
        if description.decided_by.class_vectors is not None:
            findings.note(_lost_vectors(error, location))
    except TeachonceError as error:
        findings.note(error)
    if shard_set is None:
        return None, findings
    try:
        shard_set = as_made(shard_set, location, description)
    except MismatchError as error:
        findings.note(error)
        return None, findings
    findings.note_all(_of_ledgers(shard_set, location, receipts, description))
    whole = Whole(
        shards=shard_set, store=location, description=description, views=views, receipts=receipts, vectors=vectors
    )
    return whole, findings


def _contradictions(description: StoreDescription, store: Location) -> Iterator[TeachonceError]:
    """What the store says of itself twice must be the same; the fingerprint is what readers and resumed runs compare."""
    fingerprint, teacher, spec = description.fingerprint, description.teacher, description.spec
    own: dict[str, Json] = {
        "schema_version": spec.version,
        "views": dict(description.views),
        "targets": [target.name for target in spec.targets],
        "teacher": {
            "model": teacher.get("model"),
            "architecture": teacher.get("architecture"),
            "weights": teacher.get("weights_digest"),
            "preprocess": teacher.get("preprocess"),
        },
    }
    try:
        sample = PixelSample.of_store(description, store)
        if sample is not None:
            own["pixels"] = sample.digest
    except TeachonceError as error:
        yield error
    recorded = {name: fingerprint[name] for name in own if name in fingerprint}
    said = {name: own[name] for name in recorded}
    if isinstance(recorded.get("teacher"), dict):
        names = {name for name in recorded["teacher"] if said["teacher"].get(name) is not None}
        recorded["teacher"] = {name: recorded["teacher"][name] for name in names}
        said["teacher"] = {name: said["teacher"][name] for name in names}
    yield from contradiction(recorded, said, where=store)


def contradiction(
    recorded: Mapping[str, Json], said: Mapping[str, Json], *, where: Location
) -> Iterator[MismatchError]:
    """What differs between a fingerprint and the description beside it.

    Args:
        recorded: fields of the fingerprint.
        said: the same as the description has them.
        where: the store.
    """
    try:
        Fingerprint(fields=recorded).check(
            said,
            what="the store's description contradicts its fingerprint",
            code="description-contradicts-fingerprint",
            where=f"{where}/zarr.json",
            hint="restore zarr.json from a copy",
            whose=("the fingerprint", "the description"),
        )
    except MismatchError as error:
        yield error


def _of_vectors(
    vectors: ClassVectors, description: StoreDescription, root: object, store: Location
) -> Iterator[TeachonceError]:
    """Class vectors must be those that formed the logits, of the same teacher, and fit what is stored."""
    decided = description.decided_by
    if decided.class_vectors is not None and decided.class_vectors != vectors.digest:
        yield MismatchError(
            "the store's class vectors are not those that formed its logits",
            code="vectors-not-of-logits",
            where=f"{store}: field 'class_vectors'",
            expected=f"{decided.class_vectors} (the logits)",
            found=vectors.digest,
            hint="restore the class vectors from a copy, or run `teachonce cache` into a new store with these",
        )
    try:
        origin = origin_model(root, store)  # type: ignore[arg-type]
    except TeachonceError:
        origin = None  # vectors that were brought along need not name a teacher
    if origin is not None and origin.weights_digest != decided.teacher.weights:
        yield MismatchError(
            "the store's class vectors are another teacher's",
            code="vectors-other-teacher",
            where=f"{store}: field 'teacher.weights'",
            expected=f"{decided.teacher.model} {decided.teacher.weights} (the targets)",
            found=f"{origin.model} {origin.weights_digest} (the class vectors)",
            hint=f"run `teachonce vectors` with that teacher into a new store, then `teachonce cache` with --out {typed(store)}-2",
        )
    widths = {target.name: target.width for target in description.spec.targets}
    for name, width, own in (("logits", vectors.num_classes, "class"), ("embedding", vectors.embed_dim, "channel")):
        if name in widths and widths[name] != width:
            yield MismatchError(
                f"class vectors do not fit the stored {name}",
                code="vectors-do-not-fit-targets",
                where=store,
                expected=counted(widths[name], own),
                found=width,
                hint="restore the class vectors from a copy",
            )
    planned = vectors_ledger(root, store).plan()  # type: ignore[arg-type]
    names = None if planned is None else planned.fingerprint.fields.get("classes")
    if names is not None and tuple(names) != vectors.names:
        is_order = sorted(names) == sorted(vectors.names)
        first = next((i for i, (a, b) in enumerate(zip(names, vectors.names, strict=False)) if a != b), -1)
        yield MismatchError(
            "the class vectors are of the classes in another order"
            if is_order
            else "the class vectors are of other classes",
            code="classes-in-another-order" if is_order else "classes-other",
            where=f"{store}: class_names[{first}]" if first >= 0 else store,
            expected=names[first] if first >= 0 else len(names),
            found=vectors.names[first] if first >= 0 else vectors.num_classes,
            hint="restore the class vectors from a copy",
        )


def _lost_vectors(error: IncompleteError, store: Location) -> DamagedError:
    return DamagedError(
        "the class vectors that formed the logits are gone",
        code="vectors-lost",
        where=store,
        hint=f"restore class_vectors and class_names from a copy, or run the same `teachonce vectors` command again: {error.hint}",
    )


def _of_ledgers(
    shards: ShardSet, store: Location, receipts: StoreReceipts, description: StoreDescription
) -> Iterator[TeachonceError]:
    """Plans and receipts must count the shards that there are."""
    spec = description.spec
    ledger = receipts.ledgers[0]
    names = {
        each.stage: {shard_name(i) for i in range(spec.num_shards) if each in receipts.ledgers_of(i)}
        for each in receipts.ledgers
    }
    plan = ledger.plan()
    if plan is None:
        yield IncompleteError(
            "cache has not run here",
            code="stage-not-run",
            where=store,
            hint=f"teachonce cache {typed(shards.location)} --teacher … --out {typed(store)}",
        )
    for each in receipts.ledgers:
        if plan is not None or each != ledger:
            command = plan.done_by if plan is not None and each == ledger else "cache"
            yield from unfinished(each, names[each.stage], where=store, command=command, hint=each.again)
    yield from shard_strangers(shards)
    for each in receipts.ledgers:
        yield from strangers(each, names[each.stage], beside=(VECTORS_UNIT,))
