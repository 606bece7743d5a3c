"""Anomaly maps, AUROC and AUPRO against SciPy, scikit-learn, and plain sweeps over all thresholds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn import metrics
from teachonce.stages.measures.anomaly_figures import FPR_LIMIT, PixelCounts, auroc
from teachonce.stages.measures.anomaly_maps import anomaly_maps
from teachonce.stages.measures.regions import regions_of


def drawn_masks(seed: int, count: int = 6, size: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(count, size, size)), (0, 2, 2))
    return [part > np.quantile(part, 0.9) for part in smooth]


def drawn_maps(seed: int, masks) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.clip(rng.gamma(2, 0.3, m.shape) + 0.5 * m * rng.random(m.shape), 0, 6).astype(np.float32) for m in masks]


@pytest.mark.parametrize("size", [40, 64])
def test_an_anomaly_map_is_that_of_the_published_code(size):
    generator = torch.Generator().manual_seed(4)
    shapes = {"a": (8, 16, 16), "b": (12, 8, 8), "c": (20, 4, 4)}
    teacher, student = ({n: torch.randn(2, *s, generator=generator) for n, s in shapes.items()} for _ in range(2))
    found = anomaly_maps(teacher, student, size)
    for image in range(2):
        total = np.zeros((size, size))
        for name, (_, rows, _) in shapes.items():
            a, b = (side[name][image].double().numpy() for side in (teacher, student))
            distance = 1 - (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))
            at = np.arange(size) * (rows - 1) / (size - 1)
            low = np.minimum(at.astype(int), rows - 2)
            part = at - low
            down = distance[low] * (1 - part)[:, None] + distance[low + 1] * part[:, None]
            total += down[:, low] * (1 - part) + down[:, low + 1] * part
        expected = ndimage.gaussian_filter(total, sigma=4)
        assert np.allclose(found[image].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_regions_are_those_of_scipy(seed):
    masks = [*drawn_masks(seed), np.zeros((5, 7), bool), np.ones((3, 3), bool), np.eye(6, dtype=bool)]
    for mask in masks:
        labels, count = regions_of(mask)
        expected, expected_count = ndimage.label(mask, structure=np.ones((3, 3)))
        assert count == expected_count
        assert len({*zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True)}) == count + (not mask.all())


@pytest.mark.parametrize("seed", range(3))
def test_auroc_of_pixels_is_scikit_learns(seed):
    masks = drawn_masks(seed)
    masks[0][:] = False
    maps, counts = drawn_maps(seed, masks), PixelCounts.none(6.0)
    for map_, mask in zip(maps, masks, strict=True):
        counts = counts.add(map_, mask if mask.any() else None)
    expected = metrics.roc_auc_score(np.stack(masks).ravel(), np.stack(maps).ravel())
    assert counts.auroc == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_aupro_is_that_of_a_sweep_over_all_thresholds(seed):
    masks = drawn_masks(seed, count=3, size=24)
    maps, counts = drawn_maps(seed, masks), PixelCounts.none(6.0)
    for map_, mask in zip(maps, masks, strict=True):
        counts = counts.add(map_, mask)
    normal = np.concatenate([m[~k] for m, k in zip(maps, masks, strict=True)])
    parts = []
    for map_, mask in zip(maps, masks, strict=True):
        labels, found = ndimage.label(mask, structure=np.ones((3, 3)))
        parts += [map_[labels == number] for number in range(1, found + 1)]
    assert counts.regions == len(parts)
    curve = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([normal, *parts]))[::-1]:
        overlap = np.mean([(part >= threshold).mean() for part in parts])
        curve.append((float((normal >= threshold).mean()), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 >= FPR_LIMIT:
            break
        end = min(x1, FPR_LIMIT)
        top = y0 + (y1 - y0) * (end - x0) / (x1 - x0) if x1 > x0 else y1
        area += (end - x0) * (y0 + top) / 2
    assert counts.aupro == pytest.approx(area / FPR_LIMIT, abs=1e-4)


def test_auroc_of_images_with_equal_scores():
    scores, defect = np.array([0.1, 0.4, 0.4, 0.8, 0.4]), np.array([False, True, False, True, True])
    assert auroc(scores, defect) == pytest.approx(metrics.roc_auc_score(defect, scores))
    assert auroc(scores, np.zeros(5, bool)) is None


def test_perfect_maps_and_nothing_to_compare():
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:4] = True
    counts = PixelCounts.none(6.0)
    assert counts.auroc is None
    assert counts.aupro is None
    counts = counts.add(mask.astype(np.float32), mask)
    assert counts.auroc == 1.0
    assert counts.aupro == pytest.approx(1.0)
