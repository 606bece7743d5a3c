"""Owns what the values of a recoded store had lost before they came into it: measured when they were encoded, added up over recodings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...storage_schemas.encodings import ENCODINGS, Encoding
from ...storage_schemas.encodings.floats import FloatEncoding
from ...storage_schemas.encodings.sampled import Sampled
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.store_description import StoreDescription
from .source import EMBEDDING, LOGITS, Source

#: 1 - cosine that fp16 costs at most: each number moves by 2^-11 of itself. Logits are rounded relative to their largest one, and compared
#: without their mean, beside which that is up to 8 times as far away (of 1,000 classes).
_FP16 = 2.0**-23
_FP16_LOGITS = 64 * _FP16

_COSINE, _KL, _DRAWN = "cosine_distance", "kl", "drawn"


def lost_before(old: StoreDescription, source: Source, of: Mapping[str, Encoding]) -> dict[str, Json]:
    """For each target that is taken: mean and largest 1 - cosine and KL (T = 1) from the teacher's own; `drawn` where they were draws,
    whose distance from it means nothing; None where that is not known.

    Args:
        of: the encodings of the new store. What these cost is not in it.
    """
    earlier: Any = {} if old.recoded is None else old.recoded.get("lost")  # stores of earlier versions do not say
    found: dict[str, Json] = {}
    for name in source.targets:
        formed = name == LOGITS and source.vectors is not None
        origin = EMBEDDING if formed else name
        target = old.spec.target(origin)
        stays = not formed and old.spec.encoding_of(target) == of[name]
        drawn = not stays and isinstance(old.spec.encoding_of(target), Sampled)
        if drawn or (isinstance(earlier, dict) and _DRAWN in (earlier.get(origin) or {})):
            found[name] = {_DRAWN: True}
            continue
        parts = [None if earlier is None else earlier.get(origin, {}), {} if stays else _cost(old, origin)]
        found[name] = None if None in parts or (formed and any(parts)) else _sum(*parts)
    return found


def _cost(old: StoreDescription, name: str) -> Json:
    """Of a target's own encoding in the old store; empty where it is exact."""
    encoding = old.spec.encoding_of(old.spec.target(name))
    if encoding == ENCODINGS["fp32"]:
        return {}
    if isinstance(encoding, FloatEncoding):
        cosine = _FP16_LOGITS if name == LOGITS else _FP16
        cost = {_COSINE: {"mean": cosine, "max": cosine}}
        return cost | ({_KL: dict.fromkeys(("mean", "max"), encoding.kl_budget)} if name == LOGITS else {})
    measured: Any = (old.measured or {}).get(name, {})
    if _COSINE not in measured or (name == LOGITS and "1" not in measured.get(_KL, {})):
        return None
    cost = {_COSINE: {key: measured[_COSINE][key] for key in ("mean", "max")}}
    return cost | ({_KL: {key: measured[_KL]["1"][key] for key in ("mean", "max")}} if name == LOGITS else {})


def _sum(*parts: Any) -> Json:
    """Distances of several steps; how they add up is not known, so as if all went the same way: roots of cosines are lengths."""
    found: dict[str, dict[str, float]] = {}
    for part in parts:
        for kind, cost in part.items():
            known = found.setdefault(kind, dict.fromkeys(cost, 0.0))
            for key, value in cost.items():
                known[key] = float(f"{(known[key] ** 0.5 + value**0.5) ** 2:.3g}")
    return found
