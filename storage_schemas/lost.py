"""Owns what a target's values had lost before they came into a store: mean and largest distances from the teacher's own.

`{}` where they had lost nothing, `{DRAWN: True}` where their distance from the teacher's means nothing, None where it is not known; else 1 -
cosine and, of logits, KL at T = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .encodings import ENCODINGS, Encoding
from .encodings.floats import FloatEncoding
from .encodings.spelling import EMBEDDING, LOGITS
from .fingerprint import Json
from .store_description import StoreDescription

COSINE, KL, DRAWN = "cosine_distance", "kl", "drawn"

#: 1 - cosine that fp16 costs at most: each number moves by 2^-11 of itself. Logits are rounded relative to their largest one, and compared
#: without their mean, beside which that is up to 8 times as far away (of 1,000 classes).
_FP16 = 2.0**-23
_FP16_LOGITS = 64 * _FP16

#: 1 - cosine of embeddings behind which logits that were formed of them may be anywhere: more than bf16 moves a model by.
_COARSE = 1e-4


def lost_before(chain: Sequence[StoreDescription], name: str) -> Json:
    """What a target's values had lost before this store encoded them.

    Args:
        chain: the store's description, behind those of the generations that it came of (see `Generations.chain`).
    """
    if name == LOGITS and (of := _formed_of(chain)):
        return lost_by_forming(of)
    recoded = chain[-1].recoded
    if recoded is None:
        return {}
    recorded: Any = recoded.get("lost")  # stores of earlier versions do not say
    return recorded.get(name) if isinstance(recorded, dict) else None


def lost_by_forming(chain: Sequence[StoreDescription]) -> Json:
    """What logits lose that are formed of a store's embeddings. How far embeddings move them is not known, so it is all or nothing."""
    before, own = lost_before(chain, EMBEDDING), cost_of_encoding(chain[-1], EMBEDDING)
    if before == {} and own == {}:
        return {}
    parts: list[Any] = [part for part in (before, own) if part is not None]
    unknown = own is None and encoding_of(chain[-1], EMBEDDING) not in ENCODINGS.values()
    coarse = any(DRAWN in part or part.get(COSINE, {}).get("max", 0.0) > _COARSE for part in parts)
    return {DRAWN: True} if unknown or coarse else None


def cost_of_encoding(description: StoreDescription, name: str) -> Json:
    """What a target's own encoding in this store costs; empty where it is exact."""
    encoding = encoding_of(description, name)
    if encoding == ENCODINGS["fp32"]:
        return {}
    if isinstance(encoding, FloatEncoding):
        cosine = _FP16_LOGITS if name == LOGITS else _FP16
        cost = {COSINE: {"mean": cosine, "max": cosine}}
        return cost | ({KL: dict.fromkeys(("mean", "max"), encoding.kl_budget)} if name == LOGITS else {})
    measured: Any = (description.measured or {}).get(name, {})
    if COSINE not in measured or (name == LOGITS and "1" not in measured.get(KL, {})):
        return None
    cost = {COSINE: {key: measured[COSINE][key] for key in ("mean", "max")}}
    return cost | ({KL: {key: measured[KL]["1"][key] for key in ("mean", "max")}} if name == LOGITS else {})


def encoding_of(description: StoreDescription, name: str) -> Encoding:
    """The encoding of a target in this store."""
    return description.spec.encoding_of(description.spec.target(name))


def _formed_of(chain: Sequence[StoreDescription]) -> Sequence[StoreDescription]:
    """The chain of the generation whose embeddings the logits were formed of when the store grew; empty where the teacher gave them."""
    for place in range(len(chain) - 1, 0, -1):
        growth, had = chain[place].growth, {target.name for target in chain[place - 1].spec.targets}
        added = {target.name for target in chain[place].spec.targets} - had
        if growth is None or EMBEDDING not in had:
            continue
        if (growth.what == "classes" and LOGITS in had) or (growth.what == "targets" and added == {LOGITS}):
            return chain[:place]
    return ()
