"""Owns generation 0 of S3A: clusters vote for names, get one each, and their members choose again among the names that were given.

Zhang et al., Towards Realistic Zero-Shot Classification via Self Structural Semantic Alignment, AAAI 2024, arXiv 2308.12960; as
the authors' code has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError, MismatchError, MissingDependency
from .clusters import renumbered, sizes
from .embeddings import Floats

#: Rounds of vote and realignment.
ROUNDS = 3

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Named:
    """What rounds gave.

    Attributes:
        labels_N: of each usable sample the place of its name in the vocabulary, int64 (sample,).
        voters_N: the partition that voted in the last round, int64 (sample,).
        shares_CV: of each of its clusters, the share of members whose best name each is; fp32 (cluster, name).
    """

    labels_N: Ints
    voters_N: Ints
    shares_CV: Floats


def check_vocabulary(vectors: ClassVectors, clusters: int, width: int, where: object) -> None:
    """Refuse a vocabulary that cannot name so many clusters of such embeddings.

    Raises:
        InputError: fewer names than clusters.
        MismatchError: class vectors of another width.
    """
    if vectors.num_classes < clusters:
        raise InputError(
            "fewer names than clusters: each cluster gets a name of its own",
            code="labels-too-few-names",
            where=where,
            expected=f"{clusters} names or more",
            found=vectors.num_classes,
            hint="compute class vectors of a larger vocabulary with `teachonce vectors`, or choose a smaller --classes",
        )
    if vectors.embed_dim != width:
        raise MismatchError(
            "class vectors and cached embeddings differ in width",
            code="vectors-other-width",
            where=where,
            expected=f"{width} channels (the embeddings)",
            found=f"{vectors.embed_dim} (the class vectors)",
            hint="use the teacher that was cached",
        )


def best_names(blocks: Iterable[Floats], vectors: ClassVectors) -> Ints:
    """The best name of each sample among all, int64 (sample,)."""
    return _choose(blocks, vectors, np.arange(vectors.num_classes))


def vote(partition_N: Ints, best_N: Ints, names: int) -> Floats:
    """The share of each cluster's members whose best name each is: fp32 (cluster, name). Clusters are 0, 1, … without gaps."""
    count = int(partition_N.max()) + 1
    votes_CV = np.bincount(partition_N * names + best_N, minlength=count * names).reshape(count, names)
    found: Floats = votes_CV.astype(np.float32) / sizes(partition_N, count).astype(np.float32)[:, None]
    return found


def assign(scores_CV: Floats) -> Ints:
    """A name of its own for each cluster, int64 (cluster,), such that the scores of the pairs have the greatest sum (Hungarian method).

    Raises:
        MissingDependency: SciPy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingDependency("names for clusters need SciPy", "pip install 'teachonce[s3a]'") from error

    return np.asarray(linear_sum_assignment(scores_CV.max() - scores_CV)[1], np.int64)


def realign(blocks: Iterable[Floats], vectors: ClassVectors, given_C: Ints) -> Ints:
    """The best name of each sample among those that were given, int64 (sample,): places in the vocabulary.

    The factor of the cosines (100 in the paper) does not change which is best.
    """
    return _choose(blocks, vectors, np.unique(given_C))


def rounds(blocks: Iterable[Floats], vectors: ClassVectors, partition_N: Ints, count: int = ROUNDS) -> Named:
    """Vote, one name for each cluster, realignment; so often, with the names' samples as the next round's clusters.

    Args:
        blocks: the embeddings; gone through once more than there are rounds.
        partition_N: the clusters to begin with; a sample with -1 is in none, and does not vote before it has a name.
    """
    best_N = best_names(blocks, vectors)
    labels_N = partition_N
    for _ in range(count):
        voting_N = labels_N >= 0
        voters_N = np.full(len(labels_N), -1, np.int64)
        voters_N[voting_N] = renumbered(labels_N[voting_N])
        shares_CV = vote(voters_N[voting_N], best_N[voting_N], vectors.num_classes)
        labels_N = realign(blocks, vectors, assign(shares_CV))
    return Named(labels_N=labels_N, voters_N=voters_N, shares_CV=shares_CV)


def _choose(blocks: Iterable[Floats], vectors: ClassVectors, names_V: Ints) -> Ints:
    """Of some names, in ascending order, the best for each sample; of equals the first."""
    some = ClassVectors(
        names=tuple(vectors.names[name] for name in names_V.tolist()),
        vectors_CD=np.ascontiguousarray(vectors.vectors_CD[names_V]),
        bias_C=None if vectors.bias_C is None else vectors.bias_C[names_V],
        logit_scale=vectors.logit_scale,
        normalized=vectors.normalized,
    )
    with threadpool_limits(1):  # low bits, and with them what is nearly equal, are those of any number of cores
        return np.concatenate([names_V[some.logits(part).argmax(axis=1)] for part in parts(blocks)])


def parts(blocks: Iterable[Floats], rows: int = 1024) -> Iterator[Floats]:
    """Blocks of so many rows at most, so that logits of a large vocabulary take little memory."""
    for block in blocks:
        for first in range(0, len(block), rows):
            yield block[first : first + rows]
