"""Owns the map: places in the plane for vectors, such that like ones are near each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Principal components that the map is made of.
_COMPONENTS = 50

#: Steps of the descent; 1,000 look the same and take twice as long.
_STEPS = 500

#: Fewer samples are no map.
LEAST = 12


def places(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """fp32 (sample, 2): t-SNE (van der Maaten and Hinton, 2008) of the principal components, by cosine; the same each time."""
    from sklearn.manifold import TSNE

    centred = np.asarray(vectors_ND - vectors_ND.mean(axis=0), np.float32)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1].T[: min(_COMPONENTS, len(centred))]
    points = centred @ (axes * np.sign(axes[:, np.abs(axes).argmax(axis=1)].diagonal())[:, None]).T
    first = np.zeros((len(points), 2), np.float32)
    first[:, : points.shape[1]] = points[:, :2] / max(float(points[:, 0].std()), 1e-9) * 1e-4
    model: Any = TSNE(perplexity=min(30, (len(points) - 1) / 3), init=first, max_iter=_STEPS, random_state=0)
    found: NDArray[np.float32] = model.fit_transform(points)
    return found
