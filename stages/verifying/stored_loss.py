"""Owns what is left of a teacher's values once they are stored and read again: the loss of an encoding, which is no fault."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.encodings import ENCODINGS
from ...storage_schemas.encodings.spelling import LOGITS
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


#: Encodings that keep logits but for a constant in each row, or draws of them: values cannot be compared with the teacher's own.
_RELATIVE = frozenset({"pca", "adaptive", "sampled"})


def is_relative(spec: StoreSpec, name: str) -> bool:
    """Whether what is stored has to be compared with the teacher's values after these are stored and read, too."""
    return name == LOGITS and spec.encoding_of(spec.target(name)).name in _RELATIVE


def is_exact(spec: StoreSpec, name: str) -> bool:
    """Whether what is stored of a target is what the teacher gave, to the bit."""
    return spec.encoding_of(spec.target(name)) == ENCODINGS["fp32"]


def is_fine(spec: StoreSpec, name: str) -> bool:
    """Whether images that differ always have different values."""
    return spec.encoding_of(spec.target(name)) in ENCODINGS.values()
