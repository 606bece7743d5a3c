"""Owns what a teacher gave when it ran again, over all shards: how far stored values lie from it, for people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import counted
from .measured import Measured


@dataclass
class Asked:
    """Sums over shards.

    Attributes:
        rows: that it ran on again.
        far: by target and measure (`cosine`, `kl`), each view's distance.
        allowed: the largest that rounding explains for a shard's median, by target and measure.
    """

    rows: int = 0
    far: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    allowed: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, measured: Measured) -> None:
        """What one shard gave."""
        self.rows += measured.rows
        for name, found in measured.by_target.items():
            allowed = measured.allowed[name]
            self._take(name, "cosine", found.cosine_M.tolist(), allowed.cosine)
            if found.kl_M is not None:
                self._take(name, "kl", found.kl_M.tolist(), allowed.kl)

    def _take(self, name: str, measure: str, far: Sequence[float], allowed: float) -> None:
        self.far.setdefault(name, {}).setdefault(measure, []).extend(far)
        known = self.allowed.setdefault(name, {})
        known[measure] = max(known.get(measure, 0.0), allowed)

    def to_json(self) -> Json:
        targets = {
            name: {
                measure: {
                    "median": float(np.median(values)),
                    "largest": max(values),
                    "allowed_median": self.allowed[name][measure],
                }
                for measure, values in measures.items()
            }
            for name, measures in self.far.items()
        }
        return {"rows": self.rows, "targets": targets}

    def lines(self) -> list[str]:
        """A line for each target."""
        words = {"cosine": "1 - cosine", "kl": "KL"}
        return [
            f"teacher again on {counted(self.rows, 'row')}: {name}: "
            + "; ".join(
                f"{words[measure]} {np.median(values):.2g} (median), {max(values):.2g} (largest), "
                f"{self.allowed[name][measure]:.2g} allowed"
                for measure, values in measures.items()
            )
            for name, measures in self.far.items()
        ]
