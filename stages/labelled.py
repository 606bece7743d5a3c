"""Owns labelled images: pictures whose labels are class names, with their class ids, in a fixed order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..storage_schemas.errors import InputError
from .corpora.image_set import Picture, open_images
from .corpora.images import MAX_PIXELS, decode
from .preprocess import Preprocess
from .reports.class_match import ClassMatcher
from .reports.infer import Pixels, prepare
from .views import render_views

#: Images in a batch to look at.
BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class CenterViews:
    """Test-time views of some labelled images.

    Attributes:
        images_NCHW: uint8.
        labels_N: int64 class ids of them.
        unusable: class ids of images that could not be used; they have no views.
    """

    images_NCHW: Pixels
    labels_N: NDArray[np.int64]
    unusable: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Pictures and their class ids.

    Attributes:
        images: what the user called them.
        pictures: those whose label is a class name, with the class id of each.
        found: images there, with or without such a label.
        unknown: labels that are no class, with the reason.
        max_pixels: larger ones cannot be used.
    """

    images: str
    pictures: Sequence[tuple[Picture, int]]
    found: int
    unknown: dict[str, str]
    max_pixels: int = MAX_PIXELS

    @staticmethod
    def open(
        images: str, class_names: Sequence[str], *, what: str, option: str | None = None
    ) -> LabelledImages:
        """Find the images and match their labels; nothing is decoded yet.

        Args:
            images: a folder of class folders, a tar, a list, a folder of shards, or a split of a data set.
            class_names: in the order of the logits; see `ClassMatcher` for how labels match them.
            what: what they are for, as an error names them: "validation".
            option: the option that an error tells to leave out; None where they are needed.

        Raises:
            InputError: nothing there, or no label is a class name.
        """
        image_set, matcher, found = open_images(images), ClassMatcher(class_names), 0
        known: dict[str, int | None] = {}
        unknown: dict[str, str] = {}
        pictures = []
        for picture in image_set.pictures():
            found += 1
            if picture.label is None:
                continue
            if picture.label not in known:
                match = matcher.match(picture.label)
                known[picture.label] = match.class_id
                if match.class_id is None:
                    unknown[picture.label] = match.reason
            class_id = known[picture.label]
            if class_id is not None:
                pictures.append((picture, class_id))
        if not pictures:
            raise InputError(
                f"no label of the {what} images is the name of a class", where=images,
                expected=f"names like {class_names[0]!r}",
                found=", ".join(repr(label) for label in sorted(known)[:3]) or f"{found} images, no labels",
                hint="name the folders as the classes are named" + (f", or leave out {option}" if option else ""),
            )  # fmt: skip
        return LabelledImages(
            images=images, pictures=pictures, found=found, unknown=unknown, max_pixels=image_set.max_pixels
        )

    @property
    def digest(self) -> str:
        """blake2b-128 over keys and class ids, in hexadecimal."""
        state = hashlib.blake2b(digest_size=16)
        for picture, class_id in self.pictures:
            state.update(f"{picture.key} {class_id}\n".encode())
        return state.hexdigest()

    def center_views(self, preprocess: Preprocess, *, threads: int) -> Iterator[CenterViews]:
        """All images in order, at the centre view of a model, decoded ahead in threads; each once, usable or not."""
        view, size = preprocess.center_view(), preprocess.size

        def work(item: tuple[Picture, int]) -> Pixels:
            image = decode(item[0].read(), self.max_pixels)
            return render_views(image, view.params("", *image.size), size, view, range(1))

        pixels: list[Pixels] = []
        labels: list[int] = []
        unusable: list[int] = []

        def take() -> CenterViews:
            images_NCHW = np.concatenate([np.empty((0, 3, size, size), np.uint8), *pixels])
            views = CenterViews(
                images_NCHW=images_NCHW, labels_N=np.array(labels, np.int64), unusable=tuple(unusable)
            )
            for found in (pixels, labels, unusable):
                found.clear()
            return views

        for ready in prepare(self.pictures, work, threads, 2 * BATCH_SIZE):
            if ready.pixels is None:
                unusable.append(ready.item[1])
            else:
                pixels.append(ready.pixels)
                labels.append(ready.item[1])
            if len(labels) == BATCH_SIZE:
                yield take()
        if labels or unusable:
            yield take()
