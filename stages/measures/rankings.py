"""Owns the samples that are remembered while a store is read: the first ones by some score, and a random sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.samples import KEY_LENGTH
from .sample_block import SampleBlock, SampleFacts, unmeasured
from .store_pass import Watcher

if TYPE_CHECKING:
    from ...storage_schemas.encodings import Floats

#: Scores of the samples of a block; the largest come first.
Score = Callable[[SampleBlock], "Floats"]

#: How samples may be ordered, by name.
SCORES: dict[str, Score] = {
    "confidence": lambda block: block.confidence_N,
    "unsure": lambda block: -block.confidence_N,
    "entropy": lambda block: block.entropy_N,
    "disagreement": lambda block: block.disagreement_N,
}


class Ranking(Watcher):
    """The samples with the largest scores; of equal ones the first row.

    Args:
        score: what orders them.
        keep: how many.
        only: which samples of a block count, bool (sample,); None for all.
    """

    def __init__(self, score: Score, keep: int, only: Callable[[SampleBlock], NDArray[np.bool_]] | None = None) -> None:
        self._score, self._keep, self._only = score, keep, only
        self._found: list[tuple[float, int, SampleFacts]] = []
        self.matching = 0

    def add(self, block: SampleBlock) -> None:
        indices = np.arange(len(block)) if self._only is None else np.flatnonzero(self._only(block))
        self.matching += len(indices)
        scores = self._score(block)[indices]
        if len(scores) > self._keep:
            worst = np.partition(scores, len(scores) - self._keep)[len(scores) - self._keep]
            if len(self._found) == self._keep:
                worst = max(worst, self._found[-1][0])
            kept = scores >= worst
            indices, scores = indices[kept], scores[kept]
        new = [(float(s), int(block.rows_N[i]), i) for s, i in zip(scores, indices.tolist(), strict=True)]
        new.sort(key=lambda item: (-item[0], item[1]))  # of many equal scores only the first rows' facts are made
        self._found += [(s, row, block.facts(i)) for s, row, i in new[: self._keep]]
        self._found.sort(key=lambda item: (-item[0], item[1]))
        del self._found[self._keep :]

    @property
    def samples(self) -> list[SampleFacts]:
        """The best first."""
        return [facts for _, _, facts in self._found]


def random_numbers(keys_N: NDArray[np.bytes_]) -> NDArray[np.float64]:
    """A number in [0, 1) for each key (`S32`), which are hashes: the same wherever it is drawn, and not in the rows' order."""
    digits = np.ascontiguousarray(keys_N).view(np.uint8).reshape(len(keys_N), KEY_LENGTH)[:, 16:28]
    values = np.where(digits >= 97, digits - 87, digits - np.uint8(48)) & np.uint8(15)  # hexadecimal digits
    return values.astype(np.float64) @ (16.0 ** -np.arange(1, 13))


class RandomSample(Watcher):
    """About so many samples, drawn by their keys: smaller samples are part of larger ones.

    Args:
        total: rows that will be seen; `wanted`: samples. All are kept where there are no more.
        has_logits: whether blocks come; else of a sample nothing is known but its row and key.
    """

    def __init__(self, total: int, wanted: int, *, has_logits: bool) -> None:
        self.share = share_of(total, wanted)
        self.samples: dict[int, SampleFacts] = {}
        self._has_logits = has_logits

    def begin(self, shard: int, start: int, keys_N: NDArray[np.bytes_], valid_N: NDArray[np.bool_]) -> None:
        if not self._has_logits:
            drawn = np.flatnonzero(valid_N & (random_numbers(keys_N) < self.share))
            self.samples |= {start + i: unmeasured(start + i, keys_N[i].decode("ascii")) for i in drawn.tolist()}

    def add(self, block: SampleBlock) -> None:
        drawn = np.flatnonzero(random_numbers(block.keys_N) < self.share)
        self.samples |= {facts.row: facts for facts in block.facts_of(drawn)}

    def smaller(self, total: int, wanted: int) -> list[SampleFacts]:
        """About so many of them, as another sample would have drawn."""
        share = share_of(total, wanted)
        facts = list(self.samples.values())
        numbers = random_numbers(np.array([one.key for one in facts], "S32"))
        return [one for one, number in zip(facts, numbers.tolist(), strict=True) if number < share]


def share_of(total: int, wanted: int) -> float:
    """The share of all rows that are drawn."""
    return 1.0 if total <= wanted else wanted / total


class FeatureSample(Watcher):
    """Vectors of length 1 for a random sample of rows, of what one target says of each of their first views.

    The target is the embedding, or the logits less their mean.

    Args:
        total, wanted: as in `RandomSample`.
        target: `embedding` or `logits`.
        views: how many of the first views; None for the mean direction of all of them.
    """

    def __init__(self, total: int, wanted: int, target: str, views: int | None = None) -> None:
        self.share = share_of(total, wanted)
        self.target = target
        self._views = views
        self._rows: list[NDArray[np.int64]] = []
        self._vectors: list[NDArray[np.float32]] = []
        self._now: NDArray[np.float32] | None = None

    def begin(self, shard: int, start: int, keys_N: NDArray[np.bytes_], valid_N: NDArray[np.bool_]) -> None:
        self._settle()
        self._offsets = np.flatnonzero(valid_N & (random_numbers(keys_N) < self.share))
        self._start = start

    def values(self, name: str, view: int, rows: slice, found: Floats) -> None:
        if name != self.target or found.ndim != 2 or (self._views is not None and view >= self._views):
            return
        here = (self._offsets >= rows.start) & (self._offsets < rows.stop)
        if self._now is None:
            self._now = np.zeros((len(self._offsets), self._views or 1, found.shape[1]), np.float32)
        self._now[here, view if self._views else 0] += directions(found[self._offsets[here] - rows.start], name)

    def _settle(self) -> None:
        if self._now is not None:
            kept = np.isfinite(self._now).all(axis=(1, 2))
            self._rows.append(self._offsets[kept] + self._start)
            self._vectors.append(normalized(self._now[kept]))
            self._now = None

    def take(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(rows, vectors fp32 (sample, view, channel)), in the order of the rows; forgets them."""
        self._settle()
        if not self._rows:
            return np.zeros(0, np.int64), np.zeros((0, 1, 1), np.float32)
        rows, vectors = np.concatenate(self._rows), np.concatenate(self._vectors)
        self._rows, self._vectors = [], []
        return rows, vectors


def directions(values: Floats, target: str) -> NDArray[np.float32]:
    """Vectors of length 1 of a target's values (sample, channel): logits less their mean."""
    return normalized(values - values.mean(axis=1, keepdims=True) if target == "logits" else values)


def normalized(vectors: Floats) -> NDArray[np.float32]:
    """Of length 1, fp32; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)
