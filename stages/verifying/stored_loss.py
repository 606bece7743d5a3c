"""Owns what is left of a teacher's values once they are stored and read again: the loss of an encoding, which is no fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.encodings import ENCODINGS
from ...storage_schemas.encodings.spelling import LOGITS
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.lost import COSINE, DRAWN, KL
from ...storage_schemas.store_description import StoreSpec


def stored_and_read(
    spec: StoreSpec, name: str, values: NDArray[np.float32], *, keys: Sequence[str], views: Sequence[int]
) -> NDArray[np.float32]:
    """Values of a target as a store of this spec would give them back.

    Args:
        values: fp32 (row · view, …).
        keys: of the rows.
        views: numbers of the views.
    """
    target = spec.target(name)
    encoding = spec.encoding_of(target)
    by_row = values.reshape(len(keys), len(views), *values.shape[1:])
    found = np.empty_like(by_row)
    for place, view in enumerate(views):
        stored = encoding.encode(target, by_row[:, place : place + 1], keys=keys, first_view=view)
        found[:, place] = encoding.decode(target, {array: part[:, 0] for array, part in stored.items()})
    return found.reshape(values.shape)


@dataclass(frozen=True, kw_only=True)
class LostBefore:
    """What a target's values had lost before they came into a store that was recoded: 1 - cosine, and KL of logits."""

    cosine: float = 0.0
    cosine_max: float = 0.0
    kl: float = 0.0
    kl_max: float = 0.0


def as_distances(lost: Json, spec: StoreSpec, name: str) -> LostBefore | None:
    """What one target had lost (see `storage_schemas.lost`) as distances; None where they are not known."""
    if not isinstance(lost, dict) or (lost and is_relative(spec, name)):
        return None  # a small step may be another draw, or level
    found: Any = lost
    cosine, kl = found.get(COSINE, {}), found.get(KL, {})
    return LostBefore(
        cosine=cosine.get("mean", 0.0),
        cosine_max=cosine.get("max", 0.0),
        kl=kl.get("mean", 0.0),
        kl_max=kl.get("max", 0.0),
    )


def is_comparable(lost: Json) -> bool:
    """Whether a target's values can be compared with the teacher's: not where they were draws before they came into the store, or as good as."""
    return not isinstance(lost, dict) or DRAWN not in lost


#: Encodings that keep logits but for a constant in each row, or draws of them: values cannot be compared with the teacher's own.
_RELATIVE = frozenset({"pca", "adaptive", "sampled"})


def is_relative(spec: StoreSpec, name: str) -> bool:
    """Whether what is stored has to be compared with the teacher's values after these are stored and read, too."""
    return name == LOGITS and spec.encoding_of(spec.target(name)).name in _RELATIVE


def is_exact(spec: StoreSpec, name: str) -> bool:
    """Whether what is stored of a target is what the teacher gave, to the bit."""
    return spec.encoding_of(spec.target(name)) == ENCODINGS["fp32"]


def is_plain(spec: StoreSpec, name: str) -> bool:
    """Whether a target is stored as numbers, of whichever type."""
    return spec.encoding_of(spec.target(name)) in ENCODINGS.values()


#: 1 - cosine up to which images that differ have values that do: 30 times what fp16 costs.
_FINE = 1e-5


def is_fine(lost: Json, spec: StoreSpec, name: str) -> bool:
    """Whether images that differ always have different values, in the encoding and in those that they went through before."""
    if not is_plain(spec, name) or not is_comparable(lost):
        return False
    found = as_distances(lost, spec, name)
    return found is not None and found.cosine_max <= _FINE
