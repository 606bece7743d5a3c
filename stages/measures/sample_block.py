"""Owns what is measured of each sample: its classes, certainty and agreement, over the views of one shard at a time."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ...storage_schemas.encodings import Floats

#: Rows that go through softmax at once: they stay in the cache.
_ROWS = 256

#: Classes and views of a sample that are remembered.
TOP_CLASSES, TOP_VIEWS = 5, 8


def softmax(logits_NC: Floats) -> tuple[Floats, Floats]:
    """(probabilities (N, C), entropies in nats (N,)) of logits at temperature 1, fp32."""
    shifted_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
    probabilities_NC = np.exp(shifted_NC)
    total_N1 = probabilities_NC.sum(axis=1, keepdims=True)
    probabilities_NC /= total_N1
    entropy_N = np.log(total_N1[:, 0]) - np.einsum("nc,nc->n", probabilities_NC, shifted_NC)
    return probabilities_NC, np.maximum(entropy_N, 0)


@dataclass(frozen=True, kw_only=True)
class SampleFacts:
    """What is remembered of one sample.

    Attributes:
        row, key, label: of the sample; no label where the shards are not at hand.
        first: class id of the largest mean probability over the views.
        confidence: that probability.
        entropy: mean over the views, in nats.
        agreement: share of the views whose own first class is `first`.
        disagreement: entropy of the mean less mean of the entropies (Jensen-Shannon divergence of the views), in nats.
        classes: the largest mean probabilities: (class id, probability).
        views: of the first views: (first class id, its probability).
    """

    row: int
    key: str
    label: str | None
    first: int
    confidence: float
    entropy: float
    agreement: float
    disagreement: float
    classes: tuple[tuple[int, float], ...]
    views: tuple[tuple[int, float], ...]


def unmeasured(row: int, key: str, label: str | None = None) -> SampleFacts:
    """Of a sample of a store without logits."""
    nothing = float("nan")
    return SampleFacts(
        row=row,
        key=key,
        label=label,
        first=-1,
        confidence=nothing,
        entropy=nothing,
        agreement=nothing,
        disagreement=nothing,
        classes=(),
        views=(),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleBlock:
    """The usable samples of one shard; axes: N samples, V views, C classes.

    Attributes:
        rows_N: int64; `keys_N`: `S32`.
        labels_N: label of each as text, None where it has none; None for all where the shards are not at hand.
        mean_NC: mean of the views' probabilities, fp32.
        top_VN: each view's first class; `confidence_VN`, `entropy_VN`: its probability and its entropy in nats.
    """

    shard: int
    rows_N: NDArray[np.int64]
    keys_N: NDArray[np.bytes_]
    labels_N: list[str | None] | None
    mean_NC: Floats
    top_VN: NDArray[np.int64]
    confidence_VN: Floats
    entropy_VN: Floats

    def __len__(self) -> int:
        return len(self.rows_N)

    @functools.cached_property
    def first_N(self) -> NDArray[np.int64]:
        """Class of the largest mean probability, int64."""
        return np.asarray(self.mean_NC.argmax(axis=1))

    @functools.cached_property
    def confidence_N(self) -> Floats:
        """The largest mean probability."""
        found: Floats = np.take_along_axis(self.mean_NC, self.first_N[:, None], axis=1)[:, 0]
        return found

    @functools.cached_property
    def entropy_N(self) -> Floats:
        """Mean over the views, in nats."""
        found: Floats = self.entropy_VN.mean(axis=0)
        return found

    @functools.cached_property
    def agreement_N(self) -> Floats:
        """Share of the views whose first class is the sample's."""
        return np.asarray((self.top_VN == self.first_N).mean(axis=0, dtype=np.float32))

    @functools.cached_property
    def disagreement_N(self) -> Floats:
        """Jensen-Shannon divergence of the views, in nats; 0 for one view."""
        if len(self.top_VN) == 1:
            return np.zeros(len(self), np.float32)
        entropies = [
            -np.einsum("nc,nc->n", part, np.log(np.maximum(part, 1e-30)))
            for part in (self.mean_NC[i : i + _ROWS] for i in range(0, len(self), _ROWS))
        ]
        mixed_N = np.concatenate(entropies) if entropies else np.zeros(0, np.float32)
        return np.asarray(np.maximum(mixed_N - self.entropy_N, 0), np.float32)

    @functools.cached_property
    def second_N(self) -> tuple[NDArray[np.int64], Floats]:
        """The class of the second largest mean probability, and that probability; of one class alone, itself with 0."""
        if self.mean_NC.shape[1] < 2:
            return self.first_N, np.zeros(len(self), np.float32)
        rest_NC = self.mean_NC.copy()
        np.put_along_axis(rest_NC, self.first_N[:, None], -1, axis=1)
        second_N = rest_NC.argmax(axis=1)
        found: Floats = np.take_along_axis(rest_NC, second_N[:, None], axis=1)[:, 0]
        return second_N, found

    def facts(self, index: int) -> SampleFacts:
        """What is remembered of one of them."""
        return self.facts_of(np.array([index]))[0]

    def facts_of(self, indices_M: NDArray[np.int64]) -> list[SampleFacts]:
        """What is remembered of some of them, in the order asked for."""
        mean_MC = self.mean_NC[indices_M]
        kept = min(TOP_CLASSES, mean_MC.shape[1])
        classes_MK = np.sort(np.argpartition(-mean_MC, kept - 1, axis=1)[:, :kept], axis=1)
        found_MK = np.take_along_axis(mean_MC, classes_MK, axis=1)
        order_MK = np.argsort(-found_MK, axis=1, kind="stable")
        columns = zip(
            indices_M.tolist(),
            self.rows_N[indices_M].tolist(),
            self.keys_N[indices_M].tolist(),
            self.first_N[indices_M].tolist(),
            self.confidence_N[indices_M].tolist(),
            self.entropy_N[indices_M].tolist(),
            self.agreement_N[indices_M].tolist(),
            self.disagreement_N[indices_M].tolist(),
            np.take_along_axis(classes_MK, order_MK, axis=1).tolist(),
            np.take_along_axis(found_MK, order_MK, axis=1).tolist(),
            self.top_VN[:TOP_VIEWS, indices_M].T.tolist(),
            self.confidence_VN[:TOP_VIEWS, indices_M].T.tolist(),
            strict=True,
        )
        return [
            SampleFacts(
                row=row,
                key=key.decode("ascii"),
                label=None if self.labels_N is None else self.labels_N[index],
                first=first,
                confidence=confidence,
                entropy=entropy,
                agreement=agreement,
                disagreement=disagreement,
                classes=tuple(zip(classes, probabilities, strict=True)),
                views=tuple(zip(tops, tops_p, strict=True)),
            )
            for (
                index,
                row,
                key,
                first,
                confidence,
                entropy,
                agreement,
                disagreement,
                classes,
                probabilities,
                tops,
                tops_p,
            ) in columns
        ]


class BlockBuilder:
    """Gathers the views of one shard, one after the other.

    Args:
        num_rows: of the shard; `num_classes`: C.
    """

    def __init__(self, num_rows: int, num_classes: int) -> None:
        self._sum_NC = np.zeros((num_rows, num_classes), np.float32)
        self._top: list[NDArray[np.int64]] = []
        self._confidence: list[Floats] = []
        self._entropy: list[Floats] = []

    def add_view(self, logits_NC: Floats) -> None:
        """Take the logits of all rows in one more view; what is in rows that are not usable does not matter."""
        num_rows = len(logits_NC)
        top_N, entropy_N = np.zeros(num_rows, np.int64), np.zeros(num_rows, np.float32)
        confidence_N = np.zeros(num_rows, np.float32)
        for start in range(0, num_rows, _ROWS):
            rows = slice(start, start + _ROWS)
            part_NC = logits_NC[rows]
            if not np.isfinite(part_NC).all():
                part_NC = np.where(np.isfinite(part_NC).all(axis=1, keepdims=True), part_NC, 0)
            probabilities_NC, entropy_N[rows] = softmax(part_NC)
            top_N[rows] = probabilities_NC.argmax(axis=1)
            confidence_N[rows] = probabilities_NC.max(axis=1)
            self._sum_NC[rows] += probabilities_NC
        self._top.append(top_N)
        self._confidence.append(confidence_N)
        self._entropy.append(entropy_N)

    def block(
        self,
        shard: int,
        start: int,
        keys_N: NDArray[np.bytes_],
        usable_N: NDArray[np.bool_],
        labels: list[str | None] | None,
    ) -> SampleBlock:
        """The usable rows of the views that were added.

        Args:
            start: the shard's first row.
            keys_N, usable_N, labels: of all its rows.
        """
        offsets = np.flatnonzero(usable_N)
        return SampleBlock(
            shard=shard,
            rows_N=offsets + start,
            keys_N=keys_N[offsets],
            labels_N=None if labels is None else [labels[i] for i in offsets.tolist()],
            mean_NC=self._sum_NC[offsets] / np.float32(len(self._top)),
            top_VN=np.stack([top[offsets] for top in self._top]),
            confidence_VN=np.stack([found[offsets] for found in self._confidence]),
            entropy_VN=np.stack([found[offsets] for found in self._entropy]),
        )
