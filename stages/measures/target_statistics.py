"""Owns means and standard deviations of stored targets, channel by channel: what different teachers' outputs are brought to one scale by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...pipeline.progress import Progress
from ...pipeline.requests import together
from ...pipeline.user_cache import recall, remember
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import digest_json
from ...storage_schemas.store_description import TargetSpec
from ...storage_schemas.target_store import OpenArrays, read_marks
from ..pairs.store import StoreFacts, open_store, store_receipts
from ..pairs.target_rows import TargetRows

#: Rows that are looked at together.
_ROWS = 1024

#: Of the notes in the user's cache folder; the number is raised where other statistics would be found.
_KIND, _FORMAT = "statistics", 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Of one target over all usable rows and the views that are read.

    Attributes:
        mean_C, std_C: fp32 (channel,); no standard deviation is 0.
        axis: of the channels in one row's target, from the end.
    """

    mean_C: NDArray[np.float32]
    std_C: NDArray[np.float32]
    axis: int

    @property
    def digest(self) -> str:
        """blake2b-128 over both, in hexadecimal."""
        values = np.concatenate([self.mean_C, self.std_C]).astype("<f4")
        return hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()


def channel_axis(target: TargetSpec) -> int:
    """The axis of a target's channels, from the end: of `tokens` and vectors the last, of maps the first of three."""
    return -3 if len(target.shape) == 3 else -1


def target_statistics(facts: StoreFacts, names: Mapping[str, str], views: int) -> dict[str, Statistics]:
    """Read targets once, and give their statistics; memory does not grow with the store.

    Sums are taken in fp64 of differences to the first row, so that no digits are lost where a mean is far from 0.
    What is found is remembered in this user's cache folder for just these chunks and views, so that the next training reads nothing.

    Args:
        facts: of the store.
        names: of its targets, each with the name that it gets in the result.
        views: the first so many are read.

    Raises:
        InputError: a channel that is the same everywhere.
        DamagedError: a chunk is damaged.
    """
    chunks, spec = _chunks_digest(facts), facts.spec
    keys = {name: digest_json({"format": _FORMAT, "chunks": chunks, "target": name, "views": views}) for name in names}
    known = {name: recall(_KIND, key, _Remembered) for name, key in keys.items()}
    found = {name: one.statistics(channel_axis(spec.target(name))) for name, one in known.items() if one is not None}
    for name, one in _read(facts, [name for name in names if name not in found], views).items():
        remember(_KIND, keys[name], _Remembered(mean=one.mean_C.tolist(), std=one.std_C.tolist()))
        found[name] = one
    return {shown: found[name] for name, shown in names.items()}


@dataclass(frozen=True)
class _Remembered:
    """A note of the cache: fp32 numbers, which JSON gives back exactly."""

    mean: list[float]
    std: list[float]

    def statistics(self, axis: int) -> Statistics:
        return Statistics(mean_C=np.array(self.mean, np.float32), std_C=np.array(self.std, np.float32), axis=axis)


def _chunks_digest(facts: StoreFacts) -> str:
    """A digest of all chunks of rows, by their receipts: what was written anew since has another."""
    receipts = store_receipts(facts.store, facts.generation)
    outputs = together(receipts.outputs, range(facts.spec.num_shards))
    return digest_json([sorted((path, output.sha256) for path, output in its.items()) for its in outputs])


def _read(facts: StoreFacts, names: Sequence[str], views: int) -> dict[str, Statistics]:
    """Statistics of targets, by name, from their rows."""
    if not names:
        return {}
    arrays, spec = OpenArrays(open_store(facts.store, facts.generation)), facts.spec
    sums = {name: _Sums(channel_axis(spec.target(name))) for name in names}
    with Progress("statistics", int(facts.valid_rows.sum()) * views) as bar:
        for shard in range(spec.num_shards):
            _, valid_N = read_marks(arrays, spec, shard)
            positions = np.flatnonzero(valid_N)
            for view in range(views):
                for name, added in sums.items():
                    rows = TargetRows(arrays, spec, shard, name, view)
                    for start in range(0, len(positions), _ROWS):
                        added.add(rows[positions[start : start + _ROWS]])
                bar.advance(len(positions))
    return {name: one.statistics(f"{facts.store}, target {name}") for name, one in sums.items()}


class _Sums:
    """Sums over everything but channels."""

    def __init__(self, axis: int) -> None:
        self._axis, self._count = axis, 0

    def add(self, values: NDArray[np.float32]) -> None:
        rows_NC = np.moveaxis(values, self._axis, -1).reshape(-1, values.shape[self._axis]).astype(np.float64)
        if not self._count:
            self._first_C = rows_NC[0].copy()
            self._sum_C, self._squares_C = np.zeros_like(self._first_C), np.zeros_like(self._first_C)
        rows_NC -= self._first_C
        self._sum_C += rows_NC.sum(axis=0)
        self._squares_C += np.square(rows_NC).sum(axis=0)
        self._count += len(rows_NC)

    def statistics(self, where: str) -> Statistics:
        mean_C = self._sum_C / self._count
        variance_C = np.maximum(self._squares_C / self._count - mean_C**2, 0)
        constant = np.flatnonzero(variance_C == 0)
        if len(constant):
            raise InputError(
                "a target cannot be standardised: a channel has the same value everywhere",
                code="target-constant",
                where=f"{where}, channel {constant[0]}",
                found=f"{len(constant)} such channels of {len(variance_C)}",
                hint="leave out --standardize",
            )
        return Statistics(
            mean_C=(self._first_C + mean_C).astype(np.float32),
            std_C=np.sqrt(variance_C).astype(np.float32),
            axis=self._axis,
        )
