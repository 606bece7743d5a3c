"""Several teachers' logits become one: against probabilities and logits computed in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from teachonce.stages.training.mixture import LogitsOf, Mixture, TargetLogits
from teachonce.storage_schemas.class_vectors import ClassVectors


def vectors(width: int, seed: int, bias: bool = False) -> ClassVectors:
    rng = np.random.default_rng(seed)
    return ClassVectors(
        names=tuple("abcde"),
        vectors_CD=rng.normal(size=(5, width)).astype(np.float32),
        bias_C=rng.normal(size=5).astype(np.float32) if bias else None,
        logit_scale=2.0,
        normalized=False,
    )


def softmax(logits_NC: np.ndarray) -> np.ndarray:
    powers_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return powers_NC / powers_NC.sum(axis=1, keepdims=True)


@pytest.fixture
def targets() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "logits": 4 * torch.randn(6, 5, generator=generator),
        "b:embedding": torch.randn(6, 3, generator=generator),
        "c:logits": torch.randn(6, 5, generator=generator),
    }


TEACHERS = (
    LogitsOf(target="logits", weight=2.0),
    LogitsOf(target="b:embedding", vectors=vectors(3, 1, bias=True), weight=1.0),
    LogitsOf(target="c:logits", weight=5.0),
)


def each(targets: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """The three teachers' logits, in double precision."""
    v = vectors(3, 1, bias=True)
    formed = 2.0 * targets["b:embedding"].double().numpy() @ v.vectors_CD.T.astype(float) + v.bias_C
    return [targets["logits"].double().numpy(), formed, targets["c:logits"].double().numpy()]


@pytest.mark.parametrize("t", [1.0, 4.0])
def test_the_mean_of_probabilities(targets, t):
    mixed = TargetLogits(Mixture(teachers=TEACHERS, mix="probabilities"), t)(targets)
    expected = sum(w / 8 * softmax(x / t) for w, x in zip((2, 1, 5), each(targets), strict=True))
    assert softmax(mixed.double().numpy() / t) == pytest.approx(expected, rel=1e-5)


def test_the_mean_of_logits(targets):
    mixed = TargetLogits(Mixture(teachers=TEACHERS, mix="logits"), 3.0)(targets)
    expected = sum(w / 8 * x for w, x in zip((2, 1, 5), each(targets), strict=True))
    assert mixed.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_one_teacher_is_as_it_is(targets):
    stored = Mixture(teachers=(LogitsOf(target="logits", weight=3.0),))
    assert stored.is_stored
    assert stored.to_json() == {}
    assert TargetLogits(stored, 2.0)(targets).equal(targets["logits"])
    formed = Mixture(teachers=TEACHERS[1:2])
    assert not formed.is_stored
    assert TargetLogits(formed)(targets).numpy() == pytest.approx(each(targets)[1], rel=1e-5, abs=1e-5)


def test_what_a_fingerprint_holds():
    told = Mixture(teachers=TEACHERS[:2], mix="logits").to_json()["mixture"]
    assert told["mix"] == "logits"
    assert [(one["target"], one["weight"]) for one in told["teachers"]] == [("logits", 2 / 3), ("b:embedding", 1 / 3)]
    assert told["teachers"][1]["class_vectors"] == vectors(3, 1, bias=True).digest
