"""Owns what can be wrong with stored values by themselves: NaN, rows that are all alike, one row's values in another row, lengths."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import DamagedError, MismatchError, TeachonceError
from ...storage_schemas.plain_text import counted

#: Rows of a shard from which on it means something that all of them have the same values.
_LEAST_ROWS = 3

#: How far the median length of embeddings of length 1 may be from it, whatever the encoding.
_LENGTH = 0.05

#: Rows whose lengths are computed at a time.
_ROWS = 64


@dataclass
class ValuesSeen:
    """One target of one shard, as it is read part by part.

    Attributes:
        name: of the target.
        first_row: of the shard.
        unit: whether its vectors have length 1.
    """

    name: str
    first_row: int
    unit: bool
    bad: list[int] = field(default_factory=list)
    not_nan: list[int] = field(default_factory=list)
    flat: list[int] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    by_digest: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def add(
        self,
        values: NDArray[np.floating[Any]],
        valid_N: NDArray[np.bool_],
        first: int,
        *,
        beside: NDArray[np.float32] | None = None,
    ) -> None:
        """Some rows.

        Args:
            values: (row, view, …), fp32 or, as they are stored, fp16.
            valid_N: bool (row,), which are valid.
            first: the first one's number.
            beside: (row, view), what is added to them on reading.
        """
        flat = values.reshape(len(values), values.shape[1], -1)
        finite_N = _finite(flat)
        if beside is not None:
            finite_N &= np.isfinite(beside).all(axis=1)
        rows = np.arange(first, first + len(values))
        self.bad += rows[valid_N & ~finite_N].tolist()
        self.not_nan += [
            int(rows[i]) for i in np.flatnonzero(~valid_N).tolist() if not np.isnan(_summed(flat, beside, i)).all()
        ]
        kept = np.flatnonzero(valid_N & finite_N)
        suspects = kept[(flat[kept, :, 0] == flat[kept, :, -1]).all(axis=1)] if flat.shape[-1] > 1 else kept[:0]
        self.flat += [int(rows[i]) for i in suspects if (flat[i] == flat[i, :, :1]).all()]
        if self.unit and len(kept):
            self.lengths.append(float(np.median(_lengths(flat)[kept])))
        bytes_of_row = flat[:1].nbytes
        half, data = bytes_of_row // 2, np.ascontiguousarray(flat).reshape(-1).view(np.uint8).data
        starts = [0] * len(flat) if beside is None else [zlib.crc32(row.tobytes()) for row in beside]
        for i in kept.tolist():
            begin = i * bytes_of_row
            middle, end = begin + half, begin + bytes_of_row
            digest = zlib.crc32(data[begin:middle], starts[i]), zlib.crc32(data[middle:end])
            self.by_digest.setdefault(digest, []).append(first + i)

    @property
    def repeated(self) -> list[list[int]]:
        """Rows that have the same values, in groups."""
        return [rows for rows in self.by_digest.values() if len(rows) > 1]

    def errors(self, where: str, hint: str, *, alike_means_something: bool) -> Iterator[TeachonceError]:
        """What is wrong with them.

        Args:
            alike_means_something: whether images that differ always have different values in this encoding.
        """
        if self.bad:
            yield DamagedError(
                f"'{self.name}' has NaN or infinity in valid rows",
                code="values-not-finite",
                where=f"{where}, {self._rows(self.bad)}",
                hint=hint,
            )
        if self.not_nan:
            yield DamagedError(
                f"'{self.name}' has values in rows that are not valid",
                code="values-of-unusable-rows",
                where=f"{where}, {self._rows(self.not_nan)}",
                hint=hint,
            )
        seen = sum(map(len, self.by_digest.values()))
        if alike_means_something and seen >= _LEAST_ROWS and len(self.by_digest) == 1:
            yield MismatchError(
                f"all rows of '{self.name}' have the same values: the teacher has collapsed, or saw one image",
                code="values-collapsed",
                where=where,
                expected="values that differ from image to image",
                found=f"{counted(seen, 'row')} alike",
                hint=hint,
            )
        elif alike_means_something and self.flat:
            yield MismatchError(
                f"'{self.name}' has rows whose numbers are all the same",
                code="values-constant",
                where=f"{where}, {self._rows(self.flat)}",
                hint=hint,
            )
        if self.lengths and abs(float(np.median(self.lengths)) - 1) > _LENGTH:
            yield MismatchError(
                f"vectors of '{self.name}' do not have length 1, as this teacher's have",
                code="embedding-not-normalised",
                where=where,
                expected="length 1",
                found=f"{float(np.median(self.lengths)):.4g} (median)",
                hint=hint,
            )

    def _rows(self, rows: Sequence[int]) -> str:
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        return f"row {self.first_row + rows[0]}{more}"


def _lengths(flat: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Of vectors (row, view, number): (row, view). Some rows at a time, so that what lies in between stays small."""
    parts = (flat[start : start + _ROWS].astype(np.float32, copy=False) for start in range(0, len(flat), _ROWS))
    squares_NV: NDArray[np.float32] = np.concatenate([np.einsum("nvc,nvc->nv", part, part) for part in parts])
    return np.sqrt(squares_NV)


def _finite(flat: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Bool (row,): whether all numbers of (row, view, number) are finite."""
    if flat.dtype == np.float16:  # its arithmetic is slow; NaN and infinity have all bits of the exponent
        bits = np.ascontiguousarray(flat).view(np.uint16) & np.uint16(0x7FFF)
        small: NDArray[np.bool_] = bits.max(axis=(1, 2)) < 0x7C00
        return small
    with np.errstate(all="ignore"):
        finite_N: NDArray[np.bool_] = np.isfinite(flat.sum(axis=-1)).all(
            axis=1
        )  # what overflows is looked at once more
    for row in np.flatnonzero(~finite_N):
        finite_N[row] = np.isfinite(flat[row]).all()
    return finite_N


def _summed(flat: NDArray[np.floating[Any]], beside: NDArray[np.float32] | None, row: int) -> NDArray[np.floating[Any]]:
    found: NDArray[np.floating[Any]] = flat[row]
    return found if beside is None else found.astype(np.float32) + beside[row][:, None]
