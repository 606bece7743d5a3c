"""Owns the encodings of a growing store: those of its targets stay, and a target that is added has the one that is asked for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.encodings import Encoding
from ...storage_schemas.encodings.spelling import EMBEDDING, Spelled, one
from ...storage_schemas.errors import MismatchError
from ...storage_schemas.fingerprint import Fingerprint, Json
from ...storage_schemas.generations import asked_encodings
from ...storage_schemas.store_description import StoreDescription
from ...storage_schemas.target_store import OpenArrays, read_marks, read_target_views
from ..encodings.budget import Budget
from ..encodings.request import BY_BUDGET, EncodingRequest
from ..pairs.store import open_store
from .room import refuse_no_growth

_HINT = "a store keeps the encodings that it has; leave out those of its targets, or `teachonce recode` it into another store"


@dataclass(frozen=True, kw_only=True)
class Added:
    """The encodings of targets that are added.

    Attributes:
        of: by target.
        asked: what decided all encodings of the store, beside the data; None where the store has one for all targets.
        measured: what they cost, by target, those of the store among them.
        notes: what a budget chose, and why.
    """

    of: Mapping[str, Encoding]
    asked: Json
    measured: Mapping[str, Json] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def growth_request(
    current: StoreDescription,
    added: Sequence[str],
    *,
    encoding: str | None,
    budget: Budget,
    fit_views: int,
    default_fit_views: int,
    store: Location,
) -> EncodingRequest:
    """What a command asks of the encodings of a store that grows: of targets that are there nothing but what they have.

    A budget is of targets that are added, where there are any that it may choose the encoding of.

    Args:
        added: names of the targets that are new.
        encoding, budget, fit_views: as the command has them.

    Raises:
        InputError: not an encoding.
        MismatchError: another encoding of a target that is there.
    """
    own = {target.name: current.spec.encoding_of(target) for target in current.spec.targets}
    plain = one(current.spec.encoding.name)
    request = EncodingRequest.of(
        [*own, *added],
        encoding,
        budget=budget,
        fit_views=fit_views,
        unnamed={**{name: one(known.text) for name, known in own.items()}, **dict.fromkeys(added, plain)},
    )
    differing = {n: s for n in own if (s := request.spelled[n]) is not None and s != one(own[n].text)}
    if differing:
        whole = encoding is not None and "=" not in encoding and len({known.text for known in own.values()}) == 1
        name = next(iter(differing))
        _refuse(
            {"encoding": differing[name].text if whole else {name: differing[name].text}},
            {"encoding": own[name].text if whole else {name: own[name].text}},
            store,
        )
    known = asked_encodings(current)
    recorded = {} if known is None else known
    wanted = {name: value for name, value in vars(budget).items() if value is not None}
    if wanted and not any(request.spelled[name] is None for name in added):
        _refuse(
            {"encoding": {"asked": wanted}},
            {"encoding": {"asked": {n: recorded[n] for n in wanted if n in recorded}}},
            store,
        )
    by_rows = any(known.table is not None for known in own.values()) or BY_BUDGET in recorded.values()
    if not added and by_rows and fit_views not in (default_fit_views, recorded.get("views")):
        _refuse(
            {"encoding": {"asked": {"views": fit_views}}},
            {"encoding": {"asked": {"views": recorded.get("views")}}},
            store,
        )
    return request


def _refuse(wanted: Mapping[str, Json], found: Mapping[str, Json], store: Location) -> None:
    refuse_no_growth(Fingerprint(fields=wanted), found, but=(), store=store, hint=_HINT)


def asked_with(current: StoreDescription, request: EncodingRequest, names: Sequence[str]) -> Json:
    """What decides the encodings of the store once these targets are added; None where it goes on with one for all of them.

    Args:
        request: see `growth_request`.
    """
    known, plain = asked_encodings(current), one(current.spec.encoding.name)
    if known is None and all(request.spelled[name] == plain for name in names):
        return None
    added = {name: BY_BUDGET if (s := request.spelled[name]) is None else s.text for name in names}
    if known is None:
        known = {target.name: current.spec.encoding_of(target).text for target in current.spec.targets}
        known |= {"views": request.views}
    facts: dict[str, Json] = {"views": request.views} if _looks(request, names) else {}
    if any(request.spelled[name] is None for name in names):
        facts |= {name: value for name, value in vars(request.budget).items() if value is not None}
    if all(known.get(name) == value for name, value in facts.items()):
        return {**known, **added}
    return {**known, **{name: {"asked": asked, **facts} for name, asked in added.items()}}


def _looks(request: EncodingRequest, names: Sequence[str]) -> bool:
    """Whether something about these targets is fitted or chosen."""
    spelled: list[Spelled | None] = [request.spelled[name] for name in names]
    return any(each is None or each.known.fitted for each in spelled)


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """The first rows of a store: keys, and logits that its embeddings form, fp32 (row, view, class)."""

    keys: list[str]
    logits: NDArray[np.float32]


def first_logits(store: Location, description: StoreDescription, vectors: ClassVectors, count: int) -> StoredRows:
    """Logits of the first `count` usable rows, or of all where there are fewer, from the embeddings that are there."""
    spec, root = description.spec, OpenArrays(open_store(store, description.generation))
    keys, found = list[str](), list[NDArray[np.float32]]()
    for shard in range(spec.num_shards):
        keys_N, valid_N = read_marks(root, spec, shard)
        places = np.flatnonzero(valid_N)[: count - len(keys)]
        if len(places):
            part = slice(int(places[0]), int(places[-1]) + 1)
            values = read_target_views(root, spec, shard, EMBEDDING, range(spec.num_views), part)[places - part.start]
            found.append(vectors.logits(values))
            keys += [key.decode("ascii") for key in keys_N[places].tolist()]
        if len(keys) >= count:
            break
    return StoredRows(keys=keys, logits=np.concatenate(found))


def refuse_fitted_to_classes(description: StoreDescription, store: Location, name: str) -> None:
    """Refuse other classes of logits whose encoding was fitted to those that are there.

    Raises:
        MismatchError: it was.
    """
    encoding = description.spec.encoding_of(description.spec.target(name))
    if encoding.table is not None:
        raise MismatchError(
            f"the encoding of the {name} was fitted to the classes that are there, and has no room for more",
            code="growth-encoding-fitted",
            where=store,
            expected="an encoding that is not fitted, such as int8 or sampled",
            found=encoding.text,
            hint="make class vectors of all classes in a new store (`teachonce vectors --out NEW`), then "
            "`teachonce recode STORE --classes-from NEW --out ANOTHER` forms and fits the logits anew",
        )
