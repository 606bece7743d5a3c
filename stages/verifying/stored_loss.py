"""Owns what is left of a teacher's values once they are stored and read again: the loss of an encoding, which is no fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.encodings import ENCODINGS
from ...storage_schemas.encodings.spelling import LOGITS
from ...storage_schemas.store_description import StoreDescription, StoreSpec


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


def lost_before(description: StoreDescription, name: str) -> LostBefore | None:
    """Of one target; None where that is not known."""
    if description.recoded is None:
        return LostBefore()
    recorded: Any = description.recoded.get("lost")
    lost = recorded.get(name) if isinstance(recorded, dict) else None
    if not isinstance(lost, dict) or (lost and is_relative(description.spec, name)):
        return None  # a small step may be another draw, or level
    cosine, kl = lost.get("cosine_distance", {}), lost.get("kl", {})
    return LostBefore(
        cosine=cosine.get("mean", 0.0),
        cosine_max=cosine.get("max", 0.0),
        kl=kl.get("mean", 0.0),
        kl_max=kl.get("max", 0.0),
    )


def is_comparable(description: StoreDescription, name: str) -> bool:
    """Whether a target's values can be compared with the teacher's: not where they were draws before they came into the store."""
    recorded: Any = (description.recoded or {}).get("lost") or {}
    return "drawn" not in (recorded.get(name) or {})


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


def is_fine(description: StoreDescription, name: str) -> bool:
    """Whether images that differ always have different values, in the encoding and in those that they went through before."""
    if not is_plain(description.spec, name) or not is_comparable(description, name):
        return False
    if description.recoded is None or "lost" not in description.recoded:
        return True
    lost = lost_before(description, name)
    return lost is not None and lost.cosine_max <= _FINE
