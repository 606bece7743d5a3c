"""Owns what a data set of defects gives: splits as sources of a corpus, and the mask of each image."""

from __future__ import annotations

from typing import Protocol

from ....pipeline.user_files import UserFile
from ..source import Source

#: Learned from: faultless images alone. Tested on: other faultless ones, and those with defects.
TRAIN, TEST = "train", "test"

#: The label of images without a defect; others have that of their kind of defect.
GOOD = "good"

#: Of the faultless images of data sets that are not split, in bytewise order of their paths, one in so many is tested on: the last.
ONE_IN = 5


class DefectSource(Source, Protocol):
    """One split."""

    @property
    def has_masks(self) -> bool:
        """Whether the data set says where in an image its defects are."""

    def mask(self, path: str) -> bytes | None:
        """The mask of an image that `walk` found, as the file of an image whose light pixels are defects; None where there is none."""


class DefectLayout(Protocol):
    """A data set, as it lies on a disk."""

    def open(self, data: UserFile, part: str, split: str, name: str) -> DefectSource:
        """A split of a part.

        Args:
            data: the folder that holds all parts.
            part: a product, a fabric, or `all` where the data set allows it.
            split: `TRAIN` or `TEST`.
            name: of the source.

        Raises:
            InputError: what must be there is not.
        """


def is_held_back(place: int) -> bool:
    """Whether the faultless image at this place of its fabric is tested on."""
    return place % ONE_IN == ONE_IN - 1
