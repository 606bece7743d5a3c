"""Owns measures of predictions: accuracies with standard errors, base and novel, agreement with a teacher."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..models.softmax import log_softmax

if TYPE_CHECKING:
    from ...storage_schemas.encodings import Floats


@dataclass(frozen=True)
class Rate:
    """A share of successes. `stderr` is the binomial standard error sqrt(p (1 - p) / n)."""

    correct: int
    total: int

    @property
    def rate(self) -> float:
        return self.correct / self.total if self.total else math.nan

    @property
    def stderr(self) -> float:
        return math.sqrt(self.rate * (1 - self.rate) / self.total) if self.total else math.nan


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error."""

    mean: float
    stderr: float
    total: int


def ranks(
    logits_NC: Floats, labels_N: NDArray[np.int64], among_C: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """How many classes (of `among_C`) are ahead of the true one, int64 (sample,). Low ids win ties."""
    true_N1 = np.take_along_axis(logits_NC, labels_N[:, None], axis=1)
    ahead_NC = logits_NC > true_N1
    ahead_NC |= (logits_NC == true_N1) & (np.arange(logits_NC.shape[1]) < labels_N[:, None])
    if among_C is not None:
        ahead_NC &= among_C
    return np.asarray(ahead_NC.sum(axis=1), np.int64)


def harmonic_mean(base: Rate, novel: Rate) -> Mean:
    """2 b n / (b + n), with the standard error that follows from those of both (first order)."""
    b, n = base.rate, novel.rate
    if not b + n > 0:
        return Mean(0.0 if b + n == 0 else math.nan, math.nan, base.total + novel.total)
    stderr = 2 * math.hypot((n / (b + n)) ** 2 * base.stderr, (b / (b + n)) ** 2 * novel.stderr)
    return Mean(2 * b * n / (b + n), stderr, base.total + novel.total)


class Accuracy:
    """Counts predictions against labels, class by class; memory does not grow with the images.

    With `base_C` it also counts, as in zero-shot work (CoCoOp, PromptKD), base images among base classes only
    and novel images among novel classes only.

    Attributes:
        total_C, top1_C, top5_C: images of each class; those with the true class first, or in the first five.
        split_C: images of each class with the true class first among its own side of the split.
        mistakes: (true, predicted) class ids of the wrong predictions, counted.
    """

    def __init__(self, num_classes: int, base_C: NDArray[np.bool_] | None = None) -> None:
        self.base_C = base_C
        self.total_C, self.top1_C, self.top5_C, self.split_C = np.zeros((4, num_classes), np.int64)
        self.mistakes: Counter[tuple[int, int]] = Counter()

    def add(self, logits_NC: Floats, labels_N: NDArray[np.int64]) -> None:
        """Count a batch of labelled samples; logits must be finite."""
        rank_N = ranks(logits_NC, labels_N)
        np.add.at(self.total_C, labels_N, 1)
        np.add.at(self.top1_C, labels_N[rank_N == 0], 1)
        np.add.at(self.top5_C, labels_N[rank_N < 5], 1)
        wrong = rank_N > 0
        self.mistakes.update(zip(labels_N[wrong].tolist(), logits_NC[wrong].argmax(axis=1).tolist(), strict=True))
        if self.base_C is not None:
            for side_C in (self.base_C, ~self.base_C):
                here = side_C[labels_N]
                rank_N = ranks(logits_NC[here], labels_N[here], side_C)
                np.add.at(self.split_C, labels_N[here][rank_N == 0], 1)

    @property
    def top1(self) -> Rate:
        return Rate(int(self.top1_C.sum()), int(self.total_C.sum()))

    @property
    def top5(self) -> Rate:
        return Rate(int(self.top5_C.sum()), int(self.total_C.sum()))

    @property
    def per_class(self) -> Mean:
        """Mean over the classes that have images of the share with the true class first."""
        seen = np.flatnonzero(self.total_C)
        rates = [Rate(int(self.top1_C[i]), int(self.total_C[i])) for i in seen]
        if not rates:
            return Mean(math.nan, math.nan, 0)
        stderr = math.sqrt(sum(r.stderr**2 for r in rates)) / len(rates)
        return Mean(sum(r.rate for r in rates) / len(rates), stderr, len(rates))

    @property
    def base(self) -> Rate:
        """Base images, among base classes only."""
        return self._side(True)

    @property
    def novel(self) -> Rate:
        """Novel images, among novel classes only."""
        return self._side(False)

    def _side(self, base: bool) -> Rate:
        assert self.base_C is not None
        side_C = self.base_C == base
        return Rate(int(self.split_C[side_C].sum()), int(self.total_C[side_C].sum()))

    def most_taken_for(self, class_id: int) -> tuple[int, int] | None:
        """(class id, times): the class that images of this one are most often mistaken for; None if never."""
        confusions = [(-times, guess) for (true, guess), times in self.mistakes.items() if true == class_id]
        return (min(confusions)[1], -min(confusions)[0]) if confusions else None


class Agreement:
    """Compares student and teacher sample by sample: same first class, and KL(teacher ‖ student) at T = 1."""

    def __init__(self) -> None:
        self._same = self._total = 0
        self._kl = self._kl_squares = 0.0

    def add(self, teacher_NC: Floats, student_NC: Floats) -> None:
        """Count a batch of logits over the same classes."""
        log_p, log_q = log_softmax(teacher_NC), log_softmax(student_NC)
        kl_N = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
        self._same += int((teacher_NC.argmax(axis=1) == student_NC.argmax(axis=1)).sum())
        self._total += len(kl_N)
        self._kl += float(kl_N.sum())
        self._kl_squares += float((kl_N**2).sum())

    @property
    def top1(self) -> Rate:
        """Share of samples where both put the same class first."""
        return Rate(self._same, self._total)

    @property
    def kl(self) -> Mean:
        """Mean KL divergence in nats."""
        if not self._total:
            return Mean(math.nan, math.nan, 0)
        mean = self._kl / self._total
        variance = max(0.0, self._kl_squares / self._total - mean**2)
        return Mean(mean, math.sqrt(variance / max(self._total - 1, 1)), self._total)
