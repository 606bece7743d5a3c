"""Owns the clusters of embeddings: k-means of the vectors at length 1, the same for a seed on any number of cores."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ...storage_schemas.errors import InputError, MissingDependency
from ...storage_schemas.plain_text import counted
from .embeddings import Floats, unit

#: Starts of k-means of which the best counts, and steps of each at most: those of S3A's authors.
STARTS, STEPS = 17, 1000

#: Embeddings of more bytes than this are never in memory together: k-means goes through them in blocks.
MOST_BYTES = 1 << 30

#: How often it does so, and rows of a block at least.
_PASSES, _BLOCK_ROWS = 10, 16_384


class Blocks(Protocol):
    """Vectors that can be gone through several times (see `CentreEmbeddings`)."""

    @property
    def num_samples(self) -> int: ...
    @property
    def width(self) -> int: ...
    def __iter__(self) -> Iterator[Floats]: ...


def in_blocks(embeddings: Blocks) -> bool:
    """Whether there are too many of them for plain k-means."""
    return embeddings.num_samples * embeddings.width * 4 > MOST_BYTES


def cluster(embeddings: Blocks, clusters: int, seed: int, starts: int = STARTS) -> NDArray[np.int64]:
    """The cluster of each vector, int64 (sample,), 0 to `clusters` - 1.

    Plain k-means (scikit-learn's, k-means++, the best of `starts`), one core, where the vectors take up to 1 GiB; else its minibatch
    k-means, in ten passes over blocks in their order.

    Raises:
        InputError: fewer different vectors than clusters.
        MissingDependency: scikit-learn is not installed.
    """
    if embeddings.num_samples < clusters:
        raise too_few(clusters, counted(embeddings.num_samples, "usable sample"))
    try:
        import sklearn.cluster
    except ImportError as error:
        raise MissingDependency("clusters need scikit-learn", "pip install 'teachonce[s3a]'") from error
    from sklearn.exceptions import ConvergenceWarning

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            if in_blocks(embeddings):
                return _minibatch(sklearn.cluster, embeddings, clusters, seed)
            vectors_ND = np.concatenate([unit(block) for block in embeddings])
            model = sklearn.cluster.KMeans(clusters, random_state=seed, n_init=starts, max_iter=STEPS)
            return np.asarray(model.fit_predict(vectors_ND), np.int64)
        except ConvergenceWarning as error:
            raise too_few(clusters, "fewer that differ") from error


def _minibatch(sklearn: Any, embeddings: Blocks, clusters: int, seed: int) -> NDArray[np.int64]:
    model = sklearn.MiniBatchKMeans(clusters, random_state=seed)
    for _ in range(_PASSES):
        for block in _merged(embeddings, max(_BLOCK_ROWS, 3 * clusters)):
            model.partial_fit(block)
    return np.concatenate([model.predict(unit(block)) for block in embeddings]).astype(np.int64)


def _merged(embeddings: Blocks, least: int) -> Iterator[Floats]:
    """Blocks of so many rows or more; all rows are in one."""
    held: list[Floats] = []
    left = embeddings.num_samples
    for block in embeddings:
        held.append(unit(block))
        left -= len(block)
        if sum(map(len, held)) >= least and left >= least:
            yield np.concatenate(held)
            held = []
    yield np.concatenate(held)


def too_few(clusters: int, found: str) -> InputError:
    """The error for more clusters than images."""
    return InputError(
        "fewer images than clusters",
        code="labels-too-few-images",
        where=f"--classes {clusters}",
        expected=f"{clusters} or more",
        found=found,
        hint="choose a smaller number of classes",
    )


def renumbered(partition_N: NDArray[Any]) -> NDArray[np.int64]:
    """The same partition with numbers from 0 on, in their order, without gaps."""
    return np.unique(partition_N, return_inverse=True)[1].astype(np.int64)


def sizes(partition_N: Sequence[int] | NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Samples of each cluster, int64 (cluster,)."""
    return np.bincount(partition_N, minlength=count).astype(np.int64)
