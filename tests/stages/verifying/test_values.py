"""What is wrong with values is the same whether they are looked at as they are stored or as they are read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from teachonce.stages.verifying.values import ValuesSeen

Spoil = Callable[[np.ndarray, np.ndarray], None]


def nan(stored: np.ndarray, top: np.ndarray) -> None:
    stored[3, 1, 5] = np.nan


def infinity(stored: np.ndarray, top: np.ndarray) -> None:
    stored[4, 0, 2] = -np.inf


def maximum(stored: np.ndarray, top: np.ndarray) -> None:
    top[2, 1] = np.inf


def repeated(stored: np.ndarray, top: np.ndarray) -> None:
    stored[6], top[6] = stored[1], top[1]


def alike(stored: np.ndarray, top: np.ndarray) -> None:
    stored[:], top[:] = stored[1], top[1]


def constant(stored: np.ndarray, top: np.ndarray) -> None:
    stored[5] = -0.5


def unusable(stored: np.ndarray, top: np.ndarray) -> None:
    stored[0], top[0] = -1, 3


CASES: dict[str, tuple[Spoil, list[str]]] = {
    "clean": (lambda stored, top: None, []),
    "nan": (nan, ["values-not-finite"]),
    "infinity": (infinity, ["values-not-finite"]),
    "maximum": (maximum, ["values-not-finite"]),
    "repeated": (repeated, []),
    "alike": (alike, ["values-collapsed"]),
    "constant": (constant, ["values-constant"]),
    "unusable": (unusable, ["values-of-unusable-rows"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_stored_and_read_values_have_the_same_faults(case, dtype):
    rng = np.random.default_rng(0)
    logits_NVC = rng.normal(size=(9, 2, 12)).astype(np.float32)
    top_NV = logits_NVC.max(axis=-1)
    stored_NVC = (logits_NVC - top_NV[..., None]).astype(dtype)
    stored_NVC[0], top_NV[0] = np.nan, np.nan
    valid_N = np.arange(9) > 0
    spoil, expected = CASES[case]
    spoil(stored_NVC, top_NV)
    if case == "alike":
        stored_NVC[0], top_NV[0] = np.nan, np.nan
    as_stored, as_read = ValuesSeen("logits", 13, False), ValuesSeen("logits", 13, False)
    for part in (slice(0, 4), slice(4, 9)):
        own, top, valid = stored_NVC[part], top_NV[part], valid_N[part]
        as_stored.add(own, valid, part.start, beside=top)
        as_read.add(own.astype(np.float32) + top[..., None], valid, part.start)
    found = [list(map(str, seen.errors("s", "again", alike_means_something=True))) for seen in (as_stored, as_read)]
    assert found[0] == found[1]
    assert [error.code for error in as_stored.errors("s", "again", alike_means_something=True)] == expected
    assert as_stored.repeated == as_read.repeated
    assert (as_stored.repeated == [[1, 6]]) is (case == "repeated")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("length", "expected"), [(1.0, []), (1.2, ["embedding-not-normalised"])])
def test_lengths_of_unit_vectors(dtype, length, expected):
    vectors = np.random.default_rng(1).normal(size=(8, 2, 16))
    vectors *= length / np.linalg.norm(vectors, axis=-1, keepdims=True)
    seen = ValuesSeen("embedding", 0, True)
    seen.add(vectors.astype(dtype), np.ones(8, bool), 0)
    assert [error.code for error in seen.errors("s", "again", alike_means_something=True)] == expected
