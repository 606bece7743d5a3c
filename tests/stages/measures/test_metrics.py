"""Measures against hand computation in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from teachonce.stages.measures.metrics import Accuracy, Agreement, Rate, harmonic_mean, log_softmax, ranks


@pytest.fixture(scope="module")
def guesses():
    """200 logits over 7 classes with ties among them, and labels."""
    rng = np.random.default_rng(0)
    logits_NC = rng.integers(-3, 4, (200, 7)).astype(np.float32)
    labels_N = rng.integers(0, 6, 200)  # no image of the last class
    return logits_NC, labels_N


def ordered(logits_C, among):
    return sorted(among, key=lambda c: (-logits_C[c], c))


def test_ranks_are_places_in_a_stable_sort(guesses):
    logits_NC, labels_N = guesses
    places = [ordered(row, range(7)).index(label) for row, label in zip(logits_NC, labels_N, strict=True)]
    assert ranks(logits_NC, labels_N).tolist() == places
    among = np.array([True, False, True, True, False, True, True])
    kept = np.flatnonzero(among[labels_N])
    places = [ordered(logits_NC[i], np.flatnonzero(among)).index(labels_N[i]) for i in kept]
    assert ranks(logits_NC[kept], labels_N[kept], among).tolist() == places


def test_accuracies_are_counted_as_by_hand(guesses):
    logits_NC, labels_N = guesses
    base = [0, 1, 5]
    accuracy = Accuracy(7, np.isin(np.arange(7), base))
    for start in range(0, 200, 33):
        accuracy.add(logits_NC[start : start + 33], labels_N[start : start + 33])
    first = [ordered(row, range(7)) for row in logits_NC]
    right = [f[0] == label for f, label in zip(first, labels_N, strict=True)]
    assert accuracy.top1 == Rate(sum(right), 200)
    assert accuracy.top5 == Rate(sum(label in f[:5] for f, label in zip(first, labels_N, strict=True)), 200)
    by_class = {c: [r for r, label in zip(right, labels_N, strict=True) if label == c] for c in range(6)}
    shares = [sum(r) / len(r) for r in by_class.values()]
    assert accuracy.per_class.mean == pytest.approx(sum(shares) / 6)
    variance = sum(p * (1 - p) / len(r) for p, r in zip(shares, by_class.values(), strict=True)) / 36
    assert accuracy.per_class.stderr == pytest.approx(math.sqrt(variance))
    assert accuracy.per_class.total == 6
    for side, rate in ((base, accuracy.base), ([2, 3, 4, 6], accuracy.novel)):
        mine = [i for i in range(200) if labels_N[i] in side]
        assert rate == Rate(sum(ordered(logits_NC[i], side)[0] == labels_N[i] for i in mine), len(mine))
    confused = [f[0] for f, label in zip(first, labels_N, strict=True) if label == 3 and f[0] != 3]
    most = min(set(confused), key=lambda c: (-confused.count(c), c))
    assert accuracy.most_taken_for(3) == (most, confused.count(most))
    assert accuracy.most_taken_for(6) is None


def test_standard_errors_are_binomial():
    rate = Rate(30, 40)
    assert (rate.rate, rate.stderr) == (0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 40)))
    assert math.isnan(Rate(0, 0).rate)
    assert math.isnan(Rate(0, 0).stderr)


def test_the_harmonic_mean_and_its_error():
    base, novel = Rate(80, 100), Rate(30, 60)
    mean = harmonic_mean(base, novel)
    assert mean.mean == pytest.approx(2 * 0.8 * 0.5 / 1.3)
    assert mean.total == 160
    # The spread of draws around the same rates.
    rng = np.random.default_rng(0)
    b, n = rng.binomial(100, 0.8, 50_000) / 100, rng.binomial(60, 0.5, 50_000) / 60
    assert mean.stderr == pytest.approx((2 * b * n / (b + n)).std(), rel=0.03)
    assert harmonic_mean(Rate(0, 5), Rate(0, 5)).mean == 0
    assert math.isnan(harmonic_mean(Rate(0, 5), Rate(0, 0)).mean)


def test_agreement_is_that_of_the_definition(guesses):
    rng = np.random.default_rng(1)
    teacher = rng.normal(0, 3, (50, 5)).astype(np.float32)
    student = rng.normal(0, 3, (50, 5)).astype(np.float32)
    agreement = Agreement()
    agreement.add(teacher[:20], student[:20])
    agreement.add(teacher[20:], student[20:])

    def softmax(row):
        total = sum(math.exp(float(x)) for x in row)
        return [math.exp(float(x)) / total for x in row]

    divergences = [
        sum(p * math.log(p / q) for p, q in zip(softmax(t), softmax(s), strict=True))
        for t, s in zip(teacher, student, strict=True)
    ]
    assert agreement.kl.mean == pytest.approx(np.mean(divergences), rel=1e-9)
    assert agreement.kl.stderr == pytest.approx(np.std(divergences, ddof=1) / math.sqrt(50), rel=1e-6)
    assert agreement.top1 == Rate(int((teacher.argmax(1) == student.argmax(1)).sum()), 50)
    same = Agreement()
    same.add(teacher, teacher + 7)
    assert same.kl.mean == pytest.approx(0, abs=1e-6)
    assert same.top1 == Rate(50, 50)
    assert math.isnan(Agreement().kl.mean)


def test_log_softmax_survives_large_logits():
    logs = log_softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0]], np.float32))
    assert logs[0].tolist() == [0.0, -1000.0]
    assert logs[1].tolist() == pytest.approx([-math.log(2)] * 2)
