"""Owns how the targets of a recoded store are encoded: as they are, as a user asks, or as a budget allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.encodings import Encoding
from ...storage_schemas.encodings.floats import FloatEncoding
from ...storage_schemas.encodings.spelling import Spelled, one
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.store_description import StoreDescription, TargetSpec
from ..encodings.budget import Budget, Choice, Rows, choices
from ..encodings.request import DEFAULT, EncodingRequest
from ..settings.recode import RecodeSettings
from .source import LOGITS, Source
from .taking import Taken


@dataclass(frozen=True, kw_only=True)
class NewEncodings:
    """The encodings of a new store.

    Attributes:
        whole: that of the whole store, where all targets have the same plain one; else None.
        of: of each target, by name.
        asked: what decided them, beside the data (`EncodingRequest.to_json`).
        measured: what they cost, by target, where that is known.
        notes: what a budget chose, and why.
    """

    whole: FloatEncoding | None
    of: Mapping[str, Encoding]
    asked: Json
    measured: Mapping[str, Json]
    notes: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """What a fingerprint says of them, as that of a store that `cache` made."""
        if self.whole is not None:
            return self.whole.name
        return {"asked": self.asked, **{name: encoding.to_json() for name, encoding in self.of.items()}}


def new_encodings(taken: Taken, settings: RecodeSettings, begun: StoreDescription | None) -> NewEncodings:
    """The encodings of what is taken: a target's own one stays, with what it was fitted to, unless another is asked for.

    Others are fitted to the values of the first samples that are taken, and measured against these.

    Args:
        begun: the new store, where it was begun before: it keeps its encodings.

    Raises:
        InputError: not an encoding; none keeps the budget.
    """
    source, old = taken.source, taken.description
    own = {t.name: old.spec.encoding_of(t) for t in old.spec.targets}
    request = EncodingRequest.of(
        source.targets,
        settings.encoding,
        budget=Budget(max_kl=settings.max_kl, max_bytes=settings.max_bytes),
        fit_views=settings.fit_views,
        unnamed={name: _spelled(name, own, old) for name in source.targets},
    )
    whole = request.of_all
    if whole is not None:
        return NewEncodings(whole=whole, of=dict.fromkeys(source.targets, whole), asked=None, measured={})
    there = {} if begun is None else {t.name: begun.spec.encoding_of(t) for t in begun.spec.targets}
    stays = {
        name: own[name]
        for name, spelled in request.spelled.items()
        if spelled is not None and name in own and one(own[name].text) == spelled and not _is_formed(source, name)
    }
    known = {**stays, **there}
    left = [name for name in source.targets if name not in known]
    found = _choices(request, left, taken)
    measured = {name: cost for name, cost in (old.measured or {}).items() if name in stays}
    if begun is not None:
        measured |= begun.measured or {}
    measured |= {name: choice.measured.to_json() for name, choice in found.items()}
    return NewEncodings(
        whole=None,
        of={name: known[name] if name in known else found[name].encoding for name in source.targets},
        asked=request.to_json(),
        measured=measured,
        notes=tuple(choice.why for choice in found.values() if choice.why),
    )


def _is_formed(source: Source, name: str) -> bool:
    """Whether a target is not read as it is stored: logits that are formed of embeddings."""
    return name == LOGITS and source.vectors is not None


def _spelled(name: str, own: Mapping[str, Encoding], old: StoreDescription) -> Spelled:
    """The encoding of a target for which none is asked."""
    if name in own:
        return one(own[name].text)
    return one(old.spec.encoding.name if all(t.encoding is None for t in old.spec.targets) else DEFAULT)


def _choices(request: EncodingRequest, names: Sequence[str], taken: Taken) -> dict[str, Choice]:
    if not names:
        return {}
    source, vectors = taken.source, None if taken.classes is None else taken.classes.vectors
    targets = [_target(source, name) for name in names]
    keys, values = _first_rows(source, names, request.rows(targets, len(source.views)))
    rows_of = [Rows(target=target, values=values[target.name], keys=keys, vectors=vectors) for target in targets]
    return choices(rows_of, request.spelled, request.budget)


def _target(source: Source, name: str) -> TargetSpec:
    axes = next((t.axes for t in source.spec.targets if t.name == name), ("sample", "view", "class"))
    return TargetSpec(name=name, axes=axes, shape=source.width_of(name))


def _first_rows(source: Source, names: Sequence[str], count: int) -> tuple[list[str], dict[str, NDArray[np.float32]]]:
    """(keys, targets (row, view, …) by name) of the first samples that are taken, `count` at most; those that are not finite are
    left out, which the store is refused for later."""
    reader, keys = source.open(), list[str]()
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for number in range(source.spec.num_shards):
        shard = reader.shard(number)
        for part in shard.parts():
            places = shard.taken[(shard.taken >= part.start) & (shard.taken < part.stop)][: count - len(keys)]
            if not len(places):
                continue
            values = {name: shard.target(name, part)[places - part.start] for name in names}
            finite = [np.isfinite(v).reshape(len(v), -1).all(axis=1) for v in values.values()]
            good_N = np.logical_and.reduce(finite)
            keys += [shard.keys[place] for place in places[good_N].tolist()]
            for name in names:
                found[name].append(values[name][good_N])
        if len(keys) >= count:
            break
    return keys, {name: np.concatenate(parts) for name, parts in found.items()}
