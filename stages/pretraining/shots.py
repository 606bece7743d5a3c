"""Owns the shots: few labelled images of each class, read once, and the batches of an epoch with views of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...storage_schemas.errors import InputError
from ...storage_schemas.samples import content_digest
from ..corpora.images import BadImage
from ..inputs.image_set import Picture
from ..pairs.order import permutation
from ..samples.ahead import Ready, ViewArrays, prepare
from ..samples.kind import SampleKind, draw_views
from ..views.spec import ViewSpec


@dataclass(frozen=True, kw_only=True)
class Shots:
    """Labelled images to learn prompts on.

    Attributes:
        pictures: with the place of each one's class among the classes that are learned on.
        size: pixels of the square views.
        views: one view for each epoch.
        kind, max_pixels: as in `ImageSet`.
        notes: as in `LabelledImages`.
    """

    pictures: Sequence[tuple[Picture, int]]
    size: int
    views: ViewSpec
    kind: SampleKind
    max_pixels: int
    notes: tuple[str, ...] = ()

    def check(self) -> str:
        """Look at every image once. Returns the blake2b-128 over keys, contents and classes, in hexadecimal.

        Raises:
            InputError: an image that cannot be used; names it.
        """
        state = hashlib.blake2b(digest_size=16)
        for picture, label in self.pictures:
            try:
                data = picture.read()
                self.kind.probe(data, self.max_pixels)
            except BadImage as bad:
                raise InputError(
                    "one of the shots cannot be used",
                    code="shot-unusable",
                    where=picture.path,
                    found=str(bad),
                    hint="take it out of the images, or use another --seed",
                ) from bad
            state.update(f"{picture.key} {content_digest(data)} {label}\n".encode())
        return state.hexdigest()

    def batches(
        self, epoch: int, *, batch_size: int, first: int, seed: int, threads: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches `first`, first + 1, … of an epoch: uint8 images (N, 3, size, size), int64 labels (N,).

        Order and views are functions of (seed, epoch, key); a last, shorter batch is left out.
        """
        order_N = permutation(len(self.pictures), f"shots/{seed}/{epoch}")
        steps = len(order_N) // batch_size
        items = [self.pictures[i] for i in order_N[first * batch_size : steps * batch_size]]

        def work(item: tuple[Picture, int]) -> ViewArrays:
            picture, _ = item
            sample = self.kind.decode(picture.read(), self.max_pixels)
            params = self.kind.params(sample, picture.key, self.views)
            return draw_views(self.kind, sample, params[epoch : epoch + 1], self.size, self.views)

        batch: list[tuple[ViewArrays, int]] = []
        for ready in prepare(items, work, threads, 2 * batch_size):
            batch.append((_pixels(ready), ready.item[1]))
            if len(batch) == batch_size:
                images_NCHW = torch.from_numpy(np.concatenate([pixels for pixels, _ in batch]))
                yield images_NCHW, torch.tensor([label for _, label in batch])
                batch.clear()


def _pixels(ready: Ready[tuple[Picture, int], ViewArrays]) -> ViewArrays:
    if ready.result is None:
        raise InputError(
            "one of the shots cannot be used",
            code="shot-unusable",
            where=ready.item[0].path,
            found=ready.reason,
            hint="restore it",
        )
    return ready.result
