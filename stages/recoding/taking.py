"""Owns what a user's settings take of a store: which targets, views, samples and classes, checked against what is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from ...storage_schemas.params_form import DERIVED
from ...storage_schemas.plain_text import typed
from ...storage_schemas.store_description import StoreDescription
from ..corpora.shards import ShardSet
from ..measures.stored import Stored
from ..pairs.store import StoreFacts, open_store, read_description, store_facts
from ..samples.registry import check_derivable
from ..settings.recode import RecodeSettings
from .class_list import ClassList, check_width, other_class_list, own_class_list
from .origin import Origin
from .row_choice import choose_rows, empty
from .source import EMBEDDING, LOGITS, Source
from .view_choice import places_of


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


def take(parent: Location, settings: RecodeSettings) -> Taken:
    facts = store_facts(parent, settings.generation)
    root = open_store(parent, facts.generation)
    description = read_description(root, parent)
    stored = {target.name: target for target in facts.spec.targets}
    if settings.classes_from is None:
        classes = own_class_list(parent, facts.generation)
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
    check_derivable(settings.view_params, description.sample_kind, parent)
    lacks_sizes = settings.view_params == DERIVED and facts.spec.drawing is None
    shards, no_paths = _shards(parent, settings, facts.generation, lacks_sizes)
    source = Source(
        store=parent,
        generation=facts.generation,
        spec=facts.spec,
        views=views,
        targets=targets,
        rows=choose_rows(settings, root, facts.spec, shards, parent),
        vectors=classes.vectors if forms and can_form and classes is not None else None,
        images=shards if lacks_sizes else None,
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
    by_default = [LOGITS] if settings.to == "topk" else stored
    names = by_default if settings.targets is None else [name.strip() for name in settings.targets.split(",")]
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


def _shards(
    parent: Location, settings: RecodeSettings, generation: str, lacks_sizes: bool
) -> tuple[ShardSet | None, str]:
    """The shards, and why there are none where they are only wanted."""
    needed = bool(settings.label) or settings.samples is not None or settings.to is not None
    if not needed and not lacks_sizes and settings.shards is None:
        return None, ""
    opened = Stored.open(parent, settings.shards, generation)
    if opened.shards is None and settings.label:
        raise InputError(
            "labels are in the shards",
            code="shards-needed",
            where=parent,
            expected="the folder of the store's shards (for --label)",
            found=opened.no_paths,
            hint=f"teachonce recode {typed(parent)} --shards FOLDER …",
        )
    if opened.shards is None and lacks_sizes:
        raise InputError(
            "sizes of images are in the shards",
            code="shards-needed",
            where=parent,
            expected="the folder of the store's shards (for --view-params derived)",
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
