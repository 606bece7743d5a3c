"""Owns what is known of test images: whether they have a defect, by their labels, and where, by masks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from ..corpora.defects.defect_source import GOOD, DefectSource
from ..corpora.defects.spelled import open_defects
from ..corpora.images import MAX_PIXELS, BadImage
from ..corpora.spelling import DEFECT_PREFIXES
from ..samples.images import IMAGES
from ..views.spec import ViewSpec

#: What a pixel of a mask must exceed, of 255, once the mask is of the image's size.
_LIGHT = 127


def has_defect(label: str | None) -> bool | None:
    """Whether an image has a defect, by its label; None where it has none."""
    return None if label is None else label != GOOD


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Masks of the test images of a data set, or of a folder: FOLDER/DEFECT/NAME_mask.png for the image DEFECT/NAME.png.

    Attributes:
        given: as the user spelled it.
    """

    given: str

    @staticmethod
    def of(given: str) -> Truth:
        """
        Raises:
            InputError: no such folder or data set, or one without masks.
        """
        truth = Truth(given=given)
        source = truth.source()
        if isinstance(source, UserFile):
            if not source.is_dir():
                raise InputError(
                    "no such folder of masks",
                    code="masks-missing",
                    where=f"--masks {given}",
                    hint="name the folder ground_truth, or a split as in mvtec:carpet/test=FOLDER",
                )
        elif not source.has_masks:
            raise InputError(
                "this data set has no masks",
                code="masks-missing",
                where=f"--masks {given}",
                hint="leave it out: images are told apart by their labels alone",
            )
        return truth

    def source(self) -> DefectSource | UserFile:
        """What masks are read from."""
        return open_defects(self.given) if self.given.startswith(DEFECT_PREFIXES) else UserFile.of(self.given)

    def identity(self, paths: list[str]) -> str:
        """blake2b-128 over the masks of these images."""
        hasher, reader = hashlib.blake2b(digest_size=16), MaskReader(self)
        for path in paths:
            data = reader.file(path)
            hasher.update(f"{path}\0{-1 if data is None else len(data)}\0".encode())
            hasher.update(data or b"")
        return hasher.hexdigest()


class MaskReader:
    """Reads the masks of a truth, cut and resized as their images were."""

    def __init__(self, truth: Truth) -> None:
        self._source = truth.source()

    def mask(self, path: str, params: np.void, size: int, spec: ViewSpec) -> NDArray[np.bool_] | None:
        """bool (size, size), True where there is a defect; None where the image has no mask.

        Args:
            path: of the image in its corpus.
            params: of the view that the teacher saw.
            size, spec: of the view.

        Raises:
            InputError: a mask that is no image.
        """
        data = self.file(path)
        if data is None:
            return None
        try:
            mask = IMAGES.decode(data, MAX_PIXELS)
        except BadImage as bad:
            raise InputError(
                "a mask cannot be read", code="mask-unreadable", where=path, found=bad, hint="get it again"
            ) from bad
        out = np.empty((3, size, size), np.uint8)
        IMAGES.draw(out, mask, params, size, spec)
        return np.asarray(out[0] > _LIGHT)

    def file(self, path: str) -> bytes | None:
        """The mask's file; None where there is none."""
        if not isinstance(self._source, UserFile):
            return self._source.mask(path)
        stem = path.rpartition(".")[0]
        for name in (f"{stem}_mask.png", f"{stem}.png"):
            if (self._source / name).is_file():
                return self._source.read_below(name)
        return None
