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
from ..decoding.work import Pool
from ..inputs.image_set import Picture
from ..inputs.picture_batches import picture_batches
from ..inputs.picture_files import PictureFiles
from ..inputs.picture_views import PictureViews, Wanted
from ..pairs.order import permutation
from ..samples.kind import SampleKind
from ..views.spec import ViewSpec


@dataclass(frozen=True, kw_only=True)
class Shots:
    """Labelled images to learn prompts on.

    Attributes:
        pictures: with the place of each one's class among the classes that are learned on.
        size: pixels of the square views.
        views: one view for each epoch.
        files, kind, max_pixels: as in `ImageSet`.
        notes: as in `LabelledImages`.
    """

    pictures: Sequence[tuple[Picture, int]]
    size: int
    views: ViewSpec
    files: PictureFiles
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
        self, epoch: int, *, batch_size: int, first: int, seed: int, pool: Pool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches `first`, first + 1, … of an epoch: uint8 images (N, 3, size, size), int64 labels (N,).

        Order and views are functions of (seed, epoch, key); a last, shorter batch is left out. They are decoded ahead in the pool.
        """
        order_N = permutation(len(self.pictures), f"shots/{seed}/{epoch}")
        steps = len(order_N) // batch_size
        pictures = [self.pictures[i] for i in order_N[first * batch_size : steps * batch_size]]
        work = PictureViews(
            files=self.files, kind=self.kind, limit=self.max_pixels, size=self.size, view=self.views, number=epoch
        )
        wanted = [((picture, label), Wanted(file=picture.file, key=picture.key)) for picture, label in pictures]
        for batch in picture_batches(pool, work, wanted, total=len(wanted), size=batch_size):
            for (picture, _), reason in batch.unusable:
                raise InputError(
                    "one of the shots cannot be used",
                    code="shot-unusable",
                    where=picture.path,
                    found=reason,
                    hint="restore it",
                )
            images_NCHW = torch.from_numpy(np.concatenate(batch.views.take()))
            yield images_NCHW, torch.tensor([label for (_, label), _ in batch.found])
