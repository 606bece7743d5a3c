"""Owns the validation split: labelled images that no student trains on, measured after each epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...storage_schemas.errors import InputError
from ..compute import Compute
from ..corpora.image_set import Picture, open_images
from ..corpora.images import MAX_PIXELS, decode
from ..preprocess import Preprocess
from ..reports.class_match import ClassMatcher
from ..reports.infer import Pixels, prepare
from ..students.student import ClassHead, Student
from ..views import render_views

#: Images in a forward pass.
BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Images whose labels are class names, in a fixed order.

    Attributes:
        images: what the user called them.
        pictures: with the class id of each.
        found: images there, with or without such a label.
        max_pixels: larger ones cannot be used.
    """

    images: str
    pictures: Sequence[tuple[Picture, int]]
    found: int
    max_pixels: int = MAX_PIXELS

    @staticmethod
    def open(images: str, class_names: Sequence[str]) -> Validation:
        """Find the images and match their labels; nothing is decoded yet.

        Args:
            images: a folder of class folders, a tar, a list, or a folder of shards.
            class_names: in the order of the logits; see `ClassMatcher` for how labels match them.

        Raises:
            InputError: nothing there, or no label is a class name.
        """
        image_set, matcher, found = open_images(images), ClassMatcher(class_names), 0
        known: dict[str, int | None] = {}
        pictures = []
        for picture in image_set.pictures():
            found += 1
            if picture.label is None:
                continue
            if picture.label not in known:
                known[picture.label] = matcher.match(picture.label).class_id
            class_id = known[picture.label]
            if class_id is not None:
                pictures.append((picture, class_id))
        if not pictures:
            raise InputError(
                "no label of the validation images is the name of a class", where=images,
                expected=f"names like {class_names[0]!r}",
                found=", ".join(repr(label) for label in sorted(known)[:3]) or f"{found} images, no labels",
                hint="name the folders as the classes are named, or leave out --validation",
            )  # fmt: skip
        return Validation(images=images, pictures=pictures, found=found, max_pixels=image_set.max_pixels)

    @property
    def digest(self) -> str:
        """blake2b-128 over keys and class ids, in hexadecimal."""
        state = hashlib.blake2b(digest_size=16)
        for picture, class_id in self.pictures:
            state.update(f"{picture.key} {class_id}\n".encode())
        return state.hexdigest()

    def accuracy(self, student: Student, head: ClassHead, preprocess: Preprocess, compute: Compute) -> float:
        """Top-1 accuracy of the student's own centre view, from 0 to 1; an image that cannot be used counts as wrong.

        Leaves the student in the mode in which it was.
        """
        view, right = preprocess.center_view(), 0

        def work(item: tuple[Picture, int]) -> Pixels:
            image = decode(item[0].read(), self.max_pixels)
            return render_views(image, view.params("", *image.size), preprocess.size, view, range(1))

        training = student.training
        student.eval()
        try:
            batch: list[tuple[Pixels, int]] = []
            for ready in prepare(self.pictures, work, compute.threads, 2 * BATCH_SIZE):
                if ready.pixels is not None:
                    batch.append((ready.pixels, ready.item[1]))
                if len(batch) == BATCH_SIZE:
                    right += _right(batch, student, head, compute)
                    batch.clear()
            if batch:
                right += _right(batch, student, head, compute)
        finally:
            student.train(training)
        return right / len(self.pictures)


def _right(batch: list[tuple[Pixels, int]], student: Student, head: ClassHead, compute: Compute) -> int:
    images_NCHW = torch.from_numpy(np.concatenate([pixels for pixels, _ in batch])).to(compute.device)
    with compute.inference():
        said_N = head(student(images_NCHW)).argmax(dim=1).cpu().numpy()
    return int((said_N == np.array([class_id for _, class_id in batch])).sum())
