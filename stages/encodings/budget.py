"""Owns the choice of an encoding by what it may cost: a ladder of encodings, each measured on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.encodings import Encoding, Target
from ...storage_schemas.encodings.spelling import EMBEDDING, LOGITS, Spelled, one
from ...storage_schemas.errors import InputError
from .fitting import Fits
from .measure import Measured, measure

if TYPE_CHECKING:
    from ...storage_schemas.encodings import Floats

#: Views that are measured; encodings are fitted to the others.
MEASURED_VIEWS = 512

_STEPS = (0.25, 0.35, 0.5, 0.7, 0.85, 1.0, 1.4, 2.0)

#: Encodings of logits, most exact first. Those that are not of a distribution as a whole (sampled) have no place among them.
LADDER = {
    LOGITS: (
        "fp32",
        "fp16",
        "int8",
        *(f"pca:{step:g}" for step in _STEPS),
        *(f"adaptive:{m}" for m in (0.99, 0.95, 0.9)),
    ),
    EMBEDDING: ("fp32", "fp16", "int8"),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What an encoding may cost: at most `max_kl` nats on average (T = 1), or at most `max_bytes` bytes a view."""

    max_kl: float | None = None
    max_bytes: float | None = None

    def __bool__(self) -> bool:
        return self.max_kl is not None or self.max_bytes is not None


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The outputs of one target for some samples, in fp32.

    Attributes:
        values: (row, view, …), finite.
        keys: of the samples.
        vectors: form logits from embeddings, where there are any.
    """

    target: Target
    values: Floats
    keys: Sequence[str]
    vectors: ClassVectors | None = None

    def split(self) -> tuple[Rows, Rows]:
        """(rows to fit to, rows to measure on): the last `MEASURED_VIEWS` views, a quarter at most, are measured; all are both where
        there are fewer than four rows."""
        rows, views = self.values.shape[:2]
        measured = min(-(-MEASURED_VIEWS // views), rows // 4)
        if not measured:
            return self, self
        return self._part(slice(0, rows - measured)), self._part(slice(rows - measured, rows))

    def _part(self, part: slice) -> Rows:
        return Rows(target=self.target, values=self.values[part], keys=self.keys[part], vectors=self.vectors)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An encoding of a target, what it costs, and one line on why it was taken ('' where a user named it)."""

    encoding: Encoding
    measured: Measured
    why: str = ""


def fit(rows: Rows, spelled: Spelled) -> Choice:
    """The encoding that was named, fitted where it needs that, and measured."""
    to_fit, to_measure = rows.split()
    return _tried(Fits(rows.target, _flat(to_fit)), to_measure, spelled)


def choose(rows: Rows, budget: Budget) -> Choice:
    """The encoding of a ladder that keeps a budget: of those within `max_kl` the one with the fewest bytes, of those within
    `max_bytes` the one with the least divergence.

    Raises:
        InputError: none keeps it; or there is nothing to measure a divergence of.
    """
    target = rows.target
    to_fit, to_measure = rows.split()
    fits = Fits(target, _flat(to_fit))
    tried = [(spelled.text, _tried(fits, to_measure, spelled)) for spelled in ladder(target)]
    within = [(text, choice) for text, choice in tried if _within(choice.measured, budget)]
    if not within:
        asked = (
            f"at most {budget.max_kl:g} nats"
            if budget.max_kl is not None
            else f"at most {budget.max_bytes:g} bytes a view"
        )
        by_kl = budget.max_kl is not None
        closest = min(tried, key=lambda item: _kl(item[1].measured) if by_kl else item[1].measured.bytes_per_view)
        raise InputError(
            "no encoding keeps the budget",
            code="encoding-budget-too-small",
            where=f"{target.name}: {'--max-kl' if by_kl else '--max-bytes'}",
            expected=asked,
            found=f"{closest[0]}: {_text(closest[1].measured)}",
            hint="raise it, or give --encoding, such as logits=sampled:50 (docs/encodings.md)",
        )
    if budget.max_bytes is None:
        text, best = min(within, key=lambda item: item[1].measured.bytes_per_view)
        reason = f"the smallest of {len(within)} within {budget.max_kl:g} nats"
    else:
        text, best = min(within, key=lambda item: (_kl(item[1].measured), item[1].measured.bytes_per_view))
        reason = f"the closest of {len(within)} within {budget.max_bytes:g} bytes"
    others = [f"{other} {_text(choice.measured)}" for other, choice in tried if other != text]
    why = f"{target.name} in {text}: {_text(best.measured)}; {reason} of {len(tried)} that were measured ({'; '.join(others)})"
    return Choice(encoding=best.encoding, measured=best.measured, why=why)


def ladder(target: Target) -> list[Spelled]:
    """The encodings to choose from, for a target whose divergence can be measured."""
    words = list(LADDER[target.name])
    if target.name == EMBEDDING:
        width = target.shape[0]
        words += [f"pq:{parts}" for parts in (width // 2, width // 4, width // 8) if parts]
    return [one(word) for word in words]


def _tried(fits: Fits, rows: Rows, spelled: Spelled) -> Choice:
    encoding = fits.encoding(spelled)
    return Choice(
        encoding=encoding,
        measured=measure(encoding, rows.target, rows.values, keys=rows.keys, vectors=rows.vectors),
    )


def _flat(rows: Rows) -> Floats:
    return np.ascontiguousarray(rows.values.reshape(-1, *rows.values.shape[2:]))


def _within(measured: Measured, budget: Budget) -> bool:
    by_kl = budget.max_kl is None or _kl(measured) <= budget.max_kl
    return by_kl and (budget.max_bytes is None or measured.bytes_per_view <= budget.max_bytes)


def _kl(measured: Measured) -> float:
    """Mean divergence at T = 1; of embeddings without class vectors the mean distance."""
    if measured.kl is not None:
        return measured.kl[1].mean
    assert measured.distance is not None
    return measured.distance.mean


def _text(measured: Measured) -> str:
    what = "nats" if measured.kl is not None else "of cosine"
    return f"{measured.bytes_per_view:.4g} bytes, {_kl(measured):.2g} {what}"
