"""Owns labelled images: pictures whose labels are class names, with their class ids, in a fixed order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ..storage_schemas.errors import InputError
from .corpora.image_set import Picture, open_images
from .corpora.images import MAX_PIXELS
from .reports.class_match import ClassMatcher


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
