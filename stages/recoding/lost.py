"""Owns what the values of a recoded store had lost before they came into it: measured when they were encoded, added up over recodings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...storage_schemas.encodings import Encoding
from ...storage_schemas.encodings.sampled import Sampled
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.lost import DRAWN, cost_of_encoding, encoding_of, lost_before, lost_by_forming
from ...storage_schemas.store_description import StoreDescription
from .source import LOGITS, Source


def lost_in(chain: Sequence[StoreDescription], source: Source, of: Mapping[str, Encoding]) -> dict[str, Json]:
    """For each target that is taken: mean and largest 1 - cosine and KL (T = 1) from the teacher's own; see `storage_schemas.lost`.

    Args:
        chain: the descriptions of the store that is read.
        of: the encodings of the new store. What these cost is not in it.
    """
    return {
        name: lost_by_forming(chain)
        if name == LOGITS and source.vectors is not None
        else _taken(chain, name, stays=encoding_of(chain[-1], name) == of[name])
        for name in source.targets
    }


def _taken(chain: Sequence[StoreDescription], name: str, *, stays: bool) -> Json:
    """Of a target that is read as it is stored."""
    before: Any = lost_before(chain, name)
    if DRAWN in (before or {}) or (not stays and isinstance(encoding_of(chain[-1], name), Sampled)):
        return {DRAWN: True}
    parts = [before, {} if stays else cost_of_encoding(chain[-1], name)]
    return None if None in parts else _sum(*parts)


def _sum(*parts: Any) -> Json:
    """Distances of several steps; how they add up is not known, so as if all went the same way: roots of cosines are lengths."""
    found: dict[str, dict[str, float]] = {}
    for part in parts:
        for kind, cost in part.items():
            known = found.setdefault(kind, dict.fromkeys(cost, 0.0))
            for key, value in cost.items():
                known[key] = float(f"{(known[key] ** 0.5 + value**0.5) ** 2:.3g}")
    return found
