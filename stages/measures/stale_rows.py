"""Owns the search for rows whose targets are another image's: pictures and targets of the views do not go together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .view_features import view_features

#: Fewer views tell nothing of what goes together.
LEAST_VIEWS = 400

#: Principal components of each side, the ridge on them, and pairs of directions that are compared.
_COMPONENTS, _RIDGE, _PAIRS = 250, 1e-3, 80

#: Views that are compared with all targets at a time.
_VIEWS_AT_ONCE = 1000

#: Parts of the rows of which each is also judged by what goes together in the others.
_PARTS = 3

Floats = NDArray[np.float32]


def mismatches(pixels_NVHWC: NDArray[np.uint8], vectors_NVD: Floats) -> NDArray[np.float64]:
    """How little the targets of each row go with the pictures of its views; the larger, the more likely another image's.

    Canonical correlation analysis (Hotelling, 1936) of plain features of the pixels and of the targets finds directions in which
    both go together; they give the log-likelihood ratio of correlated against independent pairs (Gaussian) of any view with any
    targets. A view's score is the logarithm of the share of other targets that go better with it than its own, plus that of the
    other views that go better with its targets: odd images, which go with nothing, are not mistaken for wrong ones. A row's score is
    the sum over its views: once with directions from all rows, and once with those from two thirds that the row is not in, in which
    its own mistake is not learned. It needs no label and no teacher.

    Args:
        pixels_NVHWC: the views as drawn, uint8 (sample, view, 32, 32, 3).
        vectors_NVD: of length 1, of the same views.
    """
    num_rows, views = vectors_NVD.shape[:2]
    flat = pixels_NVHWC.reshape(num_rows * views, *pixels_NVHWC.shape[2:])
    # What is left and what is right tells nothing.
    seen = np.asarray((view_features(flat) + view_features(flat[:, :, ::-1])) / 2, np.float32)
    said = vectors_NVD.reshape(num_rows * views, -1)
    everything = slice(None)
    scores = _scores(seen, said, everything, everything)
    parts = np.repeat(np.arange(num_rows) % _PARTS, views)
    for part in range(_PARTS):
        scores[parts == part] += _scores(seen, said, parts != part, parts == part)
    found: NDArray[np.float64] = scores.reshape(num_rows, views).sum(axis=1)
    return found


def _scores(
    seen_NF: Floats, said_ND: Floats, learned: slice | NDArray[np.bool_], judged: slice | NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Of each view that is judged, by directions from those that are learned from."""
    (middle_F, white_FX), (middle_D, white_DY) = _whitening(seen_NF[learned]), _whitening(said_ND[learned])
    seen, said = (seen_NF[learned] - middle_F) @ white_FX, (said_ND[learned] - middle_D) @ white_DY
    left, strength, right = np.linalg.svd(seen.T @ said / len(seen), full_matrices=False)
    pairs = min(_PAIRS, len(strength))
    x = _standard((seen_NF[judged] - middle_F) @ (white_FX @ left[:, :pairs]))
    y = _standard((said_ND[judged] - middle_D) @ (white_DY @ right[:pairs].T))
    r = np.clip((x * y).mean(axis=0), 0, 0.999)
    together, apart = r / (1 - r * r), r * r / (2 * (1 - r * r))
    x_alone, y_alone = (x * x) @ apart, (y * y) @ apart
    own = ((x * y) @ together) - x_alone - y_alone
    better_targets, better_views = np.zeros(len(x)), np.zeros(len(x))
    for start in range(0, len(x), _VIEWS_AT_ONCE):
        part = slice(start, start + _VIEWS_AT_ONCE)
        fits = (x[part] * together) @ y.T - x_alone[part, None] - y_alone
        better_targets[part] = (fits > own[part, None]).sum(axis=1)
        better_views += (fits > own).sum(axis=0)
    found: NDArray[np.float64] = np.log((1 + better_targets) / len(x)) + np.log((1 + better_views) / len(x))
    return found


def _whitening(values: Floats) -> tuple[Floats, Floats]:
    """(mean, the largest principal components so scaled that values have about the same variance along each)."""
    middle = np.asarray(values.mean(axis=0, dtype=np.float64), np.float32)
    centred = values - middle
    variances, axes = np.linalg.eigh(centred.T @ centred / np.float32(len(centred)))
    count = min(_COMPONENTS, len(variances), max(1, len(values) // 4))
    variances, axes = np.maximum(variances[-count:], 0), axes[:, -count:]
    return middle, np.asarray(axes / np.sqrt(variances + _RIDGE * variances[-1] + 1e-12), np.float32)


def _standard(values: Floats) -> Floats:
    return np.asarray((values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-12), np.float32)
