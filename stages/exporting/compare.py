"""Owns the comparison of an export with its student, on images: how far any number is from the student's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from ...storage_schemas.errors import DamagedError, InputError
from ..corpora.images import BadImage
from ..inputs.image_set import open_images
from ..models.weights import brief
from .form import Export, Run
from .graph import expected_output, pictures

#: Images that are compared, and of these the ones that go alone.
COUNT, ALONE = 16, 2

#: So many images of a set are looked at for these.
_LOOK_AT = 1000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far an export is from its student.

    Attributes:
        images: number that were compared.
        greatest: absolute difference of any number.
        largest: absolute value of any number of the student's.
        first_class: of how many images the first class is the same; None where no logits are compared.
    """

    images: int
    greatest: float
    largest: float
    first_class: int | None

    @property
    def share(self) -> float:
        """The greatest difference as a share of the largest number."""
        return self.greatest / self.largest if self.largest else float(self.greatest > 0)


def check_images(export: Export, images: str | None) -> list[Image.Image]:
    """Images to compare on, RGB: the first usable ones of a set, or drawn ones, of which one is no square.

    Raises:
        InputError: there is no usable image.
    """
    if images is None:
        drawn = pictures(export, COUNT)
        return [image.resize((image.width * 3, image.height * 2)) if n % 2 else image for n, image in enumerate(drawn)]
    found, opened = [], open_images(images, kind=export.student.kind)
    for picture in islice(opened.pictures(), _LOOK_AT):
        try:
            found.append(opened.kind.decode(picture.read(), opened.max_pixels))
        except BadImage:
            continue
        if len(found) == COUNT:
            break
    opened.files.close()
    if not found:
        raise InputError("no usable image", code="images-none-usable", where=images, hint="give others with --images")
    return found


def compare(export: Export, run: Run, images: Sequence[Image.Image], tolerance: float) -> Difference:
    """Compare all of them at once, and some alone: an export must take any number of images.

    Raises:
        DamagedError: the export gives another shape, or numbers that are further from the student's than the tolerance.
    """
    expected = expected_output(export, images)
    alone = [slice(n, n + 1) for n in range(min(ALONE, len(images)))]
    try:
        parts = [(run(images[part]), expected[part]) for part in (slice(None), *alone)]
    except Exception as error:
        raise _other(export, "any number of images", brief(error)) from error
    for found, own in parts:
        if found.shape != own.shape:
            raise _other(export, f"shape {own.shape}", f"shape {found.shape}")
    greatest = max(float(np.abs(found - own).max()) for found, own in parts)
    same = int((parts[0][0].argmax(1) == expected.argmax(1)).sum()) if export.result == "logits" else None
    difference = Difference(
        images=len(images), greatest=greatest, largest=float(np.abs(expected).max()), first_class=same
    )
    if not difference.share <= tolerance:  # NaN is not
        raise _other(
            export,
            f"a difference of at most {tolerance:g} of the largest number, {difference.largest:.4g}",
            f"{greatest:.4g}, which is {difference.share:.2g} of it",
        )
    return difference


def _other(export: Export, expected: str, found: str) -> DamagedError:
    return DamagedError(
        "the export does not compute what the student does",
        code="export-differs",
        where=export.bundle,
        expected=expected,
        found=found,
        hint="export it in another form; nothing was kept of this one",
    )
