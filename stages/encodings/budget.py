"""Owns the choice of an encoding by what it may cost: a ladder of encodings, each measured on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.encodings import Encoding, Target
from ...storage_schemas.encodings.spelling import EMBEDDING, LOGITS, MAPS, Spelled, is_map, one
from ...storage_schemas.errors import InputError
from .fitting import Fits
from .measure import Measured, measure

if TYPE_CHECKING:
    from ...storage_schemas.encodings import Floats

#: Views that are measured; encodings are fitted to the others.
MEASURED_VIEWS = 512

_STEPS = (0.25, 0.35, 0.5, 0.7, 0.85, 1.0, 1.4, 2.0)

#: Steps of maps, in standard deviations. From one to the next it is about 0.25 bits a number.
_MAP_STEPS = (0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15, 0.18, 0.21, 0.25, 0.3, 0.35, 0.4, 0.5, 0.7, 1.0)

#: Encodings by target, most exact first. Those that are not of a distribution as a whole (sampled) have no place among them.
LADDER = {
    LOGITS: (
        "fp32",
        "fp16",
        "int8",
        *(f"pca:{step:g}" for step in _STEPS),
        *(f"adaptive:{m}" for m in (0.99, 0.95, 0.9)),
    ),
    EMBEDDING: ("fp32", "fp16", "int8"),
    MAPS: ("fp32", "fp16", "int8-channel", "int8", *(f"pca:{step:g}" for step in _MAP_STEPS)),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What an encoding may cost: at most `max_kl` nats on average (T = 1), or at most `max_bytes` bytes a view.

    Maps have no divergence, and share the bytes of a view.
    """

    max_kl: float | None = None
    max_bytes: float | None = None

    def __bool__(self) -> bool:
        return self.max_kl is not None or self.max_bytes is not None

    def chooses(self, target: str) -> bool:
        """Whether it can choose the encoding of a target of this name."""
        return self.max_bytes is not None if is_map(target) else target in LADDER and bool(self)


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


def choices(rows_of: Sequence[Rows], spelled: Mapping[str, Spelled | None], budget: Budget) -> dict[str, Choice]:
    """The encoding of each target, by name: the one that was named, or where that is None the one that keeps the budget.

    Args:
        rows_of: of each target.

    Raises:
        InputError: none keeps the budget.
    """
    found = {rows.target.name: fit(rows, one) for rows in rows_of if (one := spelled[rows.target.name]) is not None}
    free = [rows for rows in rows_of if spelled[rows.target.name] is None]
    for rows in free:
        if not is_map(rows.target.name):
            found |= _choose([rows], budget)
    maps = [rows for rows in free if is_map(rows.target.name)]
    found |= _choose(maps, budget) if maps else {}
    return {rows.target.name: found[rows.target.name] for rows in rows_of}


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """One encoding of some targets together.

    Attributes:
        nbytes: a view.
        lost: mean divergence at T = 1, or where there is none distance, in the mean over the targets.
    """

    text: str
    choices: Mapping[str, Choice]
    nbytes: float
    lost: float
    unit: str

    @staticmethod
    def of(text: str, choices: Mapping[str, Choice]) -> _Tried:
        measured = [choice.measured for choice in choices.values()]
        return _Tried(
            text=text,
            choices=choices,
            nbytes=sum(one.bytes_per_view for one in measured),
            lost=float(np.mean([_kl(one) for one in measured])),
            unit="nats" if measured[0].kl is not None else "of cosine",
        )

    def keeps(self, budget: Budget) -> bool:
        by_kl = budget.max_kl is None or self.lost <= budget.max_kl
        return by_kl and (budget.max_bytes is None or self.nbytes <= budget.max_bytes)

    def __str__(self) -> str:
        return f"{self.nbytes:.4g} bytes, {self.lost:.2g} {self.unit}"


def _choose(rows_of: Sequence[Rows], budget: Budget) -> dict[str, Choice]:
    """The encoding of a ladder that keeps a budget, the same for all of some targets: of those within `max_kl` the one with the fewest
    bytes, of those within `max_bytes` the one that loses least.

    Raises:
        InputError: none keeps it; or there is nothing to measure a divergence of.
    """
    parts = [rows.split() for rows in rows_of]
    fits = [Fits(rows.target, _flat(to_fit)) for rows, (to_fit, _) in zip(rows_of, parts, strict=True)]
    names = ", ".join(rows.target.name for rows in rows_of)
    tried = [
        _Tried.of(
            spelled.text,
            {own.target.name: _tried(own, rest, spelled) for own, (_, rest) in zip(fits, parts, strict=True)},
        )
        for spelled in ladder(rows_of[0].target)
    ]
    within = [one for one in tried if one.keeps(budget)]
    by_kl = budget.max_kl is not None
    if not within:
        closest = min(tried, key=lambda one: one.lost if by_kl else one.nbytes)
        raise InputError(
            "no encoding keeps the budget",
            code="encoding-budget-too-small",
            where=f"{names}: {'--max-kl' if by_kl else '--max-bytes'}",
            expected=f"at most {budget.max_kl:g} nats" if by_kl else f"at most {budget.max_bytes:g} bytes a view",
            found=f"{closest.text}: {closest}",
            hint="raise it, or give --encoding, such as logits=sampled:50 (docs/encodings.md)",
        )
    if budget.max_bytes is None:
        best = min(within, key=lambda one: one.nbytes)
        reason = f"the smallest of {len(within)} within {budget.max_kl:g} nats"
    else:
        best = min(within, key=lambda one: (one.lost, one.nbytes))
        reason = f"the closest of {len(within)} within {budget.max_bytes:g} bytes"
    others = [f"{one.text} {one}" for one in tried if one is not best]
    why = f"{names} in {best.text}: {best}; {reason} of {len(tried)} that were measured ({'; '.join(others)})"
    first, *rest = best.choices.items()
    return {first[0]: replace(first[1], why=why), **dict(rest)}


def ladder(target: Target) -> list[Spelled]:
    """The encodings to choose from, for a target whose divergence can be measured."""
    words = list(LADDER[MAPS if is_map(target.name) else target.name])
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


def _kl(measured: Measured) -> float:
    """Mean divergence at T = 1; of embeddings without class vectors the mean distance."""
    if measured.kl is not None:
        return measured.kl[1].mean
    assert measured.distance is not None
    return measured.distance.mean
