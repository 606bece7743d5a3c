"""Owns adaptive sets: the fewest classes that hold a given mass, their probabilities in few levels, and the mass of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .encoding import EncodedArray, Target

if TYPE_CHECKING:
    from .encoding import Floats


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """A byte a class before compression: 0 outside the set, else a level l for a probability in proportion to l⁴.

    Fourth roots have fine steps where the mass is: a step is 4 / l in the logarithm. The mass of the other classes is kept and spread
    evenly over them.

    Attributes:
        mass: that the set holds at least.
        levels: L, the level of probability 1.
    """

    mass: float
    levels: int
    name: str = "adaptive"
    kl_budget: None = None
    table: None = None

    @property
    def text(self) -> str:
        return f"adaptive:{self.mass:.10g}:{self.levels}"

    def to_json(self) -> Any:
        return {"name": self.name, "mass": self.mass, "levels": self.levels}

    def arrays(self, target: Target) -> tuple[EncodedArray, ...]:
        own = EncodedArray(
            name=target.name,
            axes=target.axes[2:],
            shape=target.shape,
            dtype="uint8",
            fill=0,
            codec="dense",
            meaning="0 for classes outside the set; else the fourth power is in proportion to the probability. All are 0 where the row is "
            "not valid",
        )
        tail = EncodedArray(
            name="logits_tail",
            dtype="uint8",
            fill=0,
            codec="small",
            meaning=f"mass of the classes outside the set, evenly spread over them, in 255ths of {1 - self.mass:.10g}",
            beside=True,
        )
        return (own, tail)

    def encode(
        self, target: Target, values: Floats, *, keys: Sequence[str], first_view: int
    ) -> dict[str, NDArray[Any]]:
        num_classes = values.shape[2]
        logits = values.reshape(-1, num_classes).astype(np.float64)
        fine_N = np.isfinite(logits).all(axis=1)
        logits[~fine_N] = 0
        p_NC = np.exp(logits - logits.max(axis=1, keepdims=True))
        p_NC /= p_NC.sum(axis=1, keepdims=True)
        order_NC = np.argsort(-p_NC, axis=1, kind="stable")
        before_NC = np.take_along_axis(p_NC, order_NC, 1).cumsum(axis=1)
        before_NC = np.concatenate(
            [np.zeros((len(p_NC), 1)), before_NC[:, :-1]], axis=1
        )  # mass of the more likely ones
        inside_NC = np.empty(p_NC.shape, np.bool_)
        np.put_along_axis(inside_NC, order_NC, before_NC < self.mass, 1)
        levels_NC = np.where(inside_NC, np.clip(np.rint(self.levels * p_NC**0.25), 1, 255), 0).astype(np.uint8)
        share_N = np.where(inside_NC, 0, p_NC).sum(axis=1) / (1 - self.mass)
        tail_N = np.where(inside_NC.all(axis=1), 0, np.clip(np.rint(255 * share_N), 1, 255)).astype(np.uint8)
        levels_NC[~fine_N], tail_N[~fine_N] = 0, 0
        return {target.name: levels_NC.reshape(values.shape), "logits_tail": tail_N.reshape(values.shape[:2])}

    def decode(self, target: Target, stored: Mapping[str, NDArray[Any]]) -> Floats:
        levels_NC = stored[target.name]
        power = np.arange(256, dtype=np.float64) ** 4
        power_of = power.astype(np.float32)
        log_of = np.log(np.maximum(power, 1)).astype(np.float32)
        outside_N = (levels_NC == 0).sum(axis=1)
        tail_N = stored["logits_tail"] * np.float32((1 - self.mass) / 255)
        with np.errstate(divide="ignore", invalid="ignore"):
            set_N = np.log(1 - tail_N) - np.log(power_of[levels_NC].sum(axis=1))
            rest_N = np.log(tail_N / outside_N)
        logits: Floats = log_of[levels_NC]
        logits += set_N[:, None].astype(np.float32)
        np.copyto(logits, rest_N[:, None].astype(np.float32), where=levels_NC == 0)
        logits[outside_N == levels_NC.shape[1]] = np.nan
        return logits
