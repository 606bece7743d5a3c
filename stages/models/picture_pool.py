"""Owns where pictures for a model are decoded ahead: in processes where there are many, else in threads."""

from __future__ import annotations

from ..decoding.threads import Threads
from ..decoding.work import Pool
from ..inputs import picture_views
from ..inputs.picture_batches import MOST_PICTURES
from .compute import Compute

#: Fewer are decoded before processes have started.
FEW = 2 * MOST_PICTURES


def picture_pool(compute: Compute, count: int, *modules: str) -> Pool:
    """A pool for `count` pictures. Processes start now and import what `PictureViews` takes and these modules."""
    if count < FEW:
        return Threads(compute.threads)
    return compute.pool(picture_views.__name__, *modules)
