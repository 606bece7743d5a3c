"""Range, mean and standard deviation of stored values, block by block: numpy's own over all of them."""

from __future__ import annotations

import numpy as np
import pytest
from teachonce.stages.measures.soft_labels import Values


@pytest.mark.parametrize(("level", "spread"), [(0.0, 1.0), (30.0, 1e-3), (-5000.0, 1e-2), (1e-6, 1e-9)])
def test_those_of_numpy_also_where_values_lie_close_together(level, spread):
    values = (level + spread * np.random.default_rng(0).normal(size=(40, 3, 5))).astype(np.float32)
    found = Values()
    for start in range(0, 40, 16):
        found.add(values[start : start + 16], 0)
    facts, exact = found.to_json(), values.astype(np.float64)
    assert facts["mean"] == pytest.approx(exact.mean(), rel=1e-5, abs=1e-6 * spread)
    assert facts["std"] == pytest.approx(exact.std(), rel=1e-5)
    assert (facts["min"], facts["max"]) == (values.min(), values.max())


def test_one_value_has_no_deviation():
    found = Values()
    for shard in range(3):
        found.add(np.full((7, 1), 3.3, np.float32), shard)
    assert found.to_json() == {
        "nan": 0,
        "infinite": 0,
        "mean": np.float32(3.3),
        "std": 0.0,
        "min": np.float32(3.3),
        "max": np.float32(3.3),
    }
