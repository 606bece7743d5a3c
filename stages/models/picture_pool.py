"""Owns where pictures for a model are decoded ahead: in processes where there are many, else in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

from ..decoding.threads import Threads
from ..decoding.work import Pool
from ..inputs import picture_views
from ..inputs.image_set import shows_many
from ..inputs.picture_batches import MOST_PICTURES
from .compute import Compute

#: Fewer are decoded before processes have started.
FEW = 2 * MOST_PICTURES


def picture_pool(compute: Compute, count: int, *modules: str) -> Pool:
    """A pool for `count` pictures. Processes start now and import what `PictureViews` takes and these modules."""
    if count < FEW:
        return Threads(compute.threads)
    return compute.pool(picture_views.__name__, *modules)


@contextmanager
def pool_ahead(compute: Compute, images: str) -> Iterator[Callable[[int], Pool]]:
    """Start processes before the number of pictures is known, where `images` show that there are many.

    So they start while the model is loaded. What it gives is `picture_pool` by then; the pool is closed at the end.
    """
    with ExitStack() as stack:
        early = compute.pool(picture_views.__name__) if shows_many(images, FEW) else None
        if early is not None:
            stack.enter_context(closing(early))

        def pool(count: int) -> Pool:
            return early or stack.enter_context(closing(picture_pool(compute, count)))

        yield pool
