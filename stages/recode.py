"""`teachonce recode`: makes another store of a finished one, or files for other programs, without the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..pipeline.ledger import Ledger
from ..pipeline.output import check_output, claim_output
from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..pipeline.types import Resources, RunUnit, Unit
from ..storage_schemas.encodings import ENCODINGS
from ..storage_schemas.errors import InputError
from ..storage_schemas.fingerprint import Fingerprint, Json
from ..storage_schemas.plain_text import typed
from ..storage_schemas.samples import shard_name
from ..storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from ..storage_schemas.target_store import create_arrays, open_root
from .corpora.shards import ShardSet
from .measures.stored import Stored
from .pairs.store import StoreFacts, open_store, read_description, store_facts
from .pairs.store_root import refuse_lost_root
from .recoding.class_list import (
    ClassList,
    check_width,
    copy_classes,
    other_class_list,
    own_class_list,
    refuse_other_classes,
)
from .recoding.origin import Origin
from .recoding.row_choice import choose_rows, empty
from .recoding.source import EMBEDDING, LOGITS, Source
from .recoding.view_choice import places_of
from .settings.recode import RecodeSettings


@dataclass(frozen=True, kw_only=True)
class RecodeStage:
    """Shard *i* of one store becomes shard *i* of another.

    Attributes:
        out: the new store.
        source: what is read.
        description: of the new store.
        classes: the class vectors that it gets; None for none.
        notes: lines that a person should see before it starts.
    """

    out: Location
    source: Source
    description: StoreDescription
    classes: ClassList | None
    notes: tuple[str, ...] = ()

    name = "recode"
    ledger = "cache"  # what it makes is a store as `cache` makes it

    @property
    def resources(self) -> Resources:
        return Resources(units_at_once=2)

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(fields=self.description.fingerprint)

    def plan(self) -> Iterator[Unit]:
        yield from shard_units(self.source.spec)

    def create(self) -> None:
        """Make the store's arrays. The driver's work, before any worker starts; never once the ledger has a plan."""
        root = open_root(self.out.zarr_store(), mode="a", where=self.out)
        if self.classes is not None:
            copy_classes(self.classes, self.out)
        create_arrays(root, self.description)

    def open(self) -> RunUnit:
        """
        Raises:
            MismatchError: the arrays are another run's.
        """
        from .recoding.store_worker import StoreWorker

        root = open_root(self.out.zarr_store(), mode="a", where=self.out)
        read_description(root, self.out).check_planned(self.fingerprint, where=self.out)
        return StoreWorker(
            reader=self.source.open(),
            out=self.out,
            root=root,
            spec=self.description.spec,
            fingerprint=self.fingerprint.digest,
        )


def shard_units(spec: StoreSpec) -> Iterator[Unit]:
    """One unit a shard."""
    for shard in range(spec.num_shards):
        rows = spec.rows(shard)
        yield Unit(key=shard_name(shard), rows=rows.stop - rows.start, inputs={"shard": shard})


def plan_recode(store: Location | str, *, out: Location | str, settings: RecodeSettings | None = None) -> RecodeStage:
    """The stage that recodes a store; makes the new store's arrays if they are not there.

    Args:
        store: a finished target store.
        out: a new one; or a folder for files, where the settings name a layout.
        settings: None copies everything.

    Raises:
        InputError, IncompleteError, DamagedError: `store` is no finished store; it lacks what is to be taken; nothing is left.
        MismatchError: class vectors of another teacher.
    """
    settings = settings or RecodeSettings()
    check(settings)
    parent, new = Location.of(store), Location.of(out)
    check_output(new, "recode STORE", inputs=(parent, settings.classes_from, settings.samples, settings.shards))
    refuse_lost_root(new)
    taken = _take(parent, settings)
    refuse_other_classes(new, taken.classes)
    claim_output(new, RecodeStage.ledger)
    stage = RecodeStage(
        out=new, source=taken.source, description=_describe(taken, settings), classes=taken.classes, notes=taken.notes
    )
    if Ledger(new, RecodeStage.ledger).plan() is None:
        stage.create()
    return stage


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a user's settings take of a store."""

    facts: StoreFacts
    description: StoreDescription
    source: Source
    classes: ClassList | None
    origin: Origin
    shards: ShardSet | None
    notes: tuple[str, ...]


def _take(parent: Location, settings: RecodeSettings) -> Taken:
    facts = store_facts(parent)
    root = open_store(parent)
    description = read_description(root, parent)
    stored = {target.name: target for target in facts.spec.targets}
    if settings.classes_from is None:
        classes = own_class_list(parent)
    else:
        weights = description.decided_by.teacher.weights
        classes = other_class_list(Location.of(settings.classes_from), store=parent, weights=weights)
    targets = _target_names(settings, facts, classes)
    forms = LOGITS not in stored or settings.classes_from is not None
    if EMBEDDING in stored and classes is not None and forms:
        check_width(classes, stored[EMBEDDING].shape[0], parent)
    can_form = EMBEDDING in stored and classes is not None
    if settings.confidence is not None and not (can_form if forms else LOGITS in stored):
        raise _no_logits(parent, stored, "--confidence")
    views = places_of(settings.views, facts.spec.num_views, parent)
    shards, no_paths = _shards(parent, settings)
    source = Source(
        store=parent,
        spec=facts.spec,
        views=views,
        targets=targets,
        rows=choose_rows(settings, root, facts.spec, shards, parent),
        vectors=classes.vectors if forms and can_form and classes is not None else None,
    )
    _refuse_empty(source)
    anew = LOGITS in targets and source.vectors is not None
    return Taken(
        facts=facts,
        description=description,
        source=source,
        classes=classes,
        origin=Origin(
            fingerprint=facts.fingerprint,
            num_views=facts.spec.num_views,
            views=views,
            rows=source.rows,
            classes=source.vectors.digest if anew and source.vectors is not None else None,
        ),
        shards=shards,
        notes=(no_paths,) if no_paths else (),
    )


def _target_names(settings: RecodeSettings, facts: StoreFacts, classes: ClassList | None) -> tuple[str, ...]:
    """Names of the targets that are taken.

    Raises:
        InputError: the store lacks one, and it cannot be formed.
    """
    stored = [target.name for target in facts.spec.targets]
    names = stored if settings.targets is None else [name.strip() for name in settings.targets.split(",")]
    for name in names:
        forms = name == LOGITS and (LOGITS not in stored or settings.classes_from is not None)
        if forms and (EMBEDDING not in stored or classes is None):
            raise _no_logits(
                facts.store, stored, "--targets logits" if settings.classes_from is None else "--classes-from"
            )
        if not forms and name not in stored:
            raise InputError(
                f"the store holds no target '{name}'",
                code="target-not-in-store",
                where=facts.store,
                expected=f"some of {', '.join(stored)}",
                found=f"--targets {settings.targets}",
                hint=f"teachonce cache SHARDS --targets {name} --teacher … --out ANOTHER_STORE",
            )
    return tuple(dict.fromkeys(names))


def _no_logits(store: Location, stored: Mapping[str, Any] | list[str], option: str) -> InputError:
    lacks = "class vectors" if EMBEDDING in stored else "embeddings"
    hint = (
        "run `teachonce vectors` with its teacher into a store of its own, and give that as --classes-from"
        if EMBEDDING in stored
        else "teachonce cache SHARDS --targets embedding --teacher … --out ANOTHER_STORE"
    )
    return InputError(
        f"logits cannot be formed without {lacks}",
        code="logits-cannot-be-formed",
        where=store,
        expected=f"{lacks} (for {option})",
        found=", ".join(stored),
        hint=hint,
    )


def _shards(parent: Location, settings: RecodeSettings) -> tuple[ShardSet | None, str]:
    """The shards, and why there are none where they are only wanted."""
    needed = bool(settings.label) or settings.samples is not None
    if not needed and settings.shards is None:
        return None, ""
    opened = Stored.open(parent, settings.shards)
    if opened.shards is None and settings.label:
        raise InputError(
            "labels are in the shards",
            code="shards-needed",
            where=parent,
            expected="the folder of the store's shards (for --label)",
            found=opened.no_paths,
            hint=f"teachonce recode {typed(parent)} --shards FOLDER …",
        )
    return opened.shards, opened.no_paths


def _refuse_empty(source: Source) -> None:
    """Look for the first sample that is confident as wanted: nearly always in the first shard."""
    if source.rows.confidence is None:
        return
    reader = source.open()
    if not any(len(reader.shard(shard).taken) for shard in range(source.spec.num_shards)):
        least, largest = source.rows.confidence
        raise empty(source.store, f"none with a probability from {least:g} to {largest:g}")


def _describe(taken: Taken, settings: RecodeSettings) -> StoreDescription:
    """What the new store says of itself: all that the old one says, but for what is another now."""
    old, source = taken.description, taken.source
    encoding = old.spec.encoding if settings.encoding is None else ENCODINGS[settings.encoding]
    spec = replace(
        old.spec,
        num_views=len(source.views),
        encoding=encoding,
        targets=tuple(
            TargetSpec.of(
                name,
                next((target.axes[2:] for target in old.spec.targets if target.name == name), ("class",)),
                source.width_of(name),
                shard_size=old.spec.shard_size,
                num_samples=old.spec.num_samples,
                num_views=len(source.views),
                encoding=encoding,
            )
            for name in source.targets
        ),
    )

    views = taken.facts.views.some(source.views)
    fields: dict[str, Json] = {
        **old.fingerprint,
        "schema_version": spec.version,
        "views": views.to_json(),
        "targets": [target.name for target in spec.targets],
        "encoding": encoding.name,
        "recoded": taken.origin.to_json(),
    }
    fields.pop("class_vectors", None)
    if LOGITS in source.targets and taken.classes is not None:
        fields["class_vectors"] = taken.classes.vectors.digest
    return replace(
        old,
        spec=spec,
        fingerprint=fields,
        views=views.to_json(),
        recoded={"from": source.store.address, **taken.origin.to_json()},
    )
