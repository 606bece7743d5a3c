"""Owns outputs that stand in for a teacher's where there is none to run: their chunks compress as those of real ones do.

Logits are drawn so that rows are as sure and as unsure as EfficientNet-Lite0's on random crops of photographs. See docs/plan.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.samples import sample_key
from ...storage_schemas.store_description import StoreSpec
from ...storage_schemas.target_store import TargetBlock
from ..views.spec import ViewSpec

#: Of the logits of a row: the spread of most classes; by how much the likeliest stands out, in the mean (it is drawn from a gamma
#: distribution of this shape); and the power of its rank by which the others stand out less.
SPREAD, LEAD, SHAPE, POWER = 0.87, 9.5, 20.0, 0.26

#: Pixels of an image whose boxes stand in for those of real ones.
_WIDTH, _HEIGHT = 500, 375

#: By how many pixels their shorter sides differ from it at most, where sizes are stored.
_SPREAD = 50


def stand_in_logits(rows: int, views: int, classes: int, seed: int = 0) -> NDArray[np.float32]:
    """fp32 (row, view, class)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, SPREAD, (rows, views, classes))
    lead = rng.gamma(SHAPE, LEAD / SHAPE, (rows, views, 1)) * np.arange(1, classes + 1) ** -POWER
    order = rng.permuted(np.broadcast_to(np.arange(classes), logits.shape), axis=-1)
    np.put_along_axis(logits, order, np.take_along_axis(logits, order, -1) + lead, -1)
    return logits.astype(np.float32)


def stand_in_values(rows: int, views: int, shape: Sequence[int], seed: int = 0) -> NDArray[np.float32]:
    """fp32 (row, view, …): normal numbers, of length 1 along the channels where there is one axis."""
    values = np.random.default_rng(seed).normal(0.0, 1.0, (rows, views, *shape))
    if len(shape) == 1:
        values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return values.astype(np.float32)


def stand_in_vectors(classes: int, channels: int) -> ClassVectors:
    """Class vectors of nobody's: unit vectors, with CLIP's scale."""
    return ClassVectors(
        names=tuple(f"class {number}" for number in range(classes)),
        vectors_CD=stand_in_values(classes, 1, (channels,))[:, 0],
        bias_C=None,
        logit_scale=100.0,
        normalized=True,
    )


def stand_in_block(spec: StoreSpec, views: ViewSpec, rows: int) -> TargetBlock:
    """Rows of a store that no teacher has seen."""
    keys = [sample_key("stand-in", str(row)) for row in range(rows)]
    sizes_N2 = np.full((rows, 2), (_HEIGHT, _WIDTH), np.int32)
    if spec.drawing is not None:  # then they are what is stored: one side of photographs is often the same
        shorter_N = np.random.default_rng(0).integers(_HEIGHT - _SPREAD, _HEIGHT + _SPREAD, rows)
        sizes_N2[np.arange(rows), np.arange(rows) % 4 // 3] = shorter_N
    return TargetBlock(
        keys=keys,
        valid=np.ones(rows, np.bool_),
        view_params=views.drawing.params(keys, sizes_N2, range(views.count)),
        sizes=sizes_N2,
        targets={
            target.name: stand_in_logits(rows, views.count, target.shape[0])
            if target.name == "logits"
            else stand_in_values(rows, views.count, target.shape)
            for target in spec.targets
        },
    )
