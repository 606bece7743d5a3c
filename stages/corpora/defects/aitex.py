"""Owns the layout of AITEX: strips of fabric in NODefect_images/FOLDER, Defect_images and Mask_images, cut into square tiles.

Silvestre-Blanes et al., A Public Fabric Database for Defect Detection Methods and Results, Autex Research Journal 2019. A strip is
4096 x 256 pixels, NUMBER_DEFECT_FABRIC.png (0001_002_00.png); its mask is the same name with _mask, or several with _mask1, _mask2.
"""

from __future__ import annotations

import functools
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....pipeline.user_files import UserFile
from ....storage_schemas.errors import InputError
from ..source import SourceFile
from .defect_source import GOOD, TEST, TRAIN, is_held_back

FAULTLESS, DEFECTS, MASKS = "NODefect_images", "Defect_images", "Mask_images"

_STRIP = re.compile(r"(\d+)_(\d+)_(\d+)\.png$")
_NO_MASK = "a strip with a defect and without a mask"

#: All fabrics together.
ALL = "all"


@dataclass(frozen=True, kw_only=True, eq=False)
class AitexSource:
    """One split of a fabric, or of all, as tiles `…/0001_002_00/07.png` that are as wide as strips are high.

    Of the faultless strips of each fabric one in five is tested on, by their names: tiles of one strip are alike, so strips are
    split, not tiles. A tile of a strip with a defect has that defect if its part of the mask shows some of it; else it is faultless.
    """

    name: str
    data: UserFile
    fabric: str
    split: str
    _last: list[tuple[str, Image.Image]] = field(default_factory=list)

    has_masks = True

    def walk(self) -> Iterator[SourceFile]:
        found = [file for path in self._strips() for file in self._tiles(path)]
        yield from sorted(found, key=lambda file: file.path.encode())

    def read(self, path: str, offset: int, size: int) -> bytes:
        strip, number = _parts(path)
        return _png(_cut(self._strip(strip), number))

    def mask(self, path: str) -> bytes | None:
        strip, number = _parts(path)
        mask_YX = self._mask(strip)
        if mask_YX is None:
            return None
        side = len(mask_YX)
        tile_YX = mask_YX[:, number * side : (number + 1) * side]
        return _png(Image.fromarray(np.where(tile_YX, 255, 0).astype(np.uint8))) if tile_YX.any() else None

    def _strips(self) -> Iterator[str]:
        """Paths of the split's strips."""
        of_fabric: dict[str, list[str]] = defaultdict(list)
        for folder in (self.data / FAULTLESS).names():
            for name in (self.data / FAULTLESS / folder).names():
                if (named := _STRIP.match(name)) is not None and self.fabric in (ALL, named[3]):
                    of_fabric[named[3]].append(f"{FAULTLESS}/{folder}/{name}")
        for strips in of_fabric.values():
            for place, path in enumerate(sorted(strips, key=str.encode)):
                if is_held_back(place) == (self.split == TEST):
                    yield path
        if self.split == TRAIN:
            return
        for name in (self.data / DEFECTS).names():
            if (named := _STRIP.match(name)) is not None and self.fabric in (ALL, named[3]):
                yield f"{DEFECTS}/{name}"

    def _tiles(self, strip: str) -> Iterator[SourceFile]:
        mask_YX = self._mask(strip) if strip.startswith(DEFECTS) else None
        if strip.startswith(DEFECTS) and mask_YX is None:
            yield SourceFile(path=strip, size=0, label=None, left_out=_NO_MASK)
            return
        defect = strip.rpartition("/")[2].split("_")[1]
        size = self._size(strip)
        if size is None:
            yield SourceFile(path=strip, size=0, label=None, left_out="a strip that is no image")
            return
        width, side = size
        for number in range(width // side):
            shows = mask_YX is not None and mask_YX[:, number * side : (number + 1) * side].any()
            path = f"{strip.removesuffix('.png')}/{number:02d}.png"
            yield SourceFile(path=path, size=-1, label=defect if shows else GOOD)

    def _size(self, strip: str) -> tuple[int, int] | None:
        """Width and height, by the head of the file; None where it is no image."""
        try:
            with Image.open(io.BytesIO(self.data.read_below(strip))) as image:
                return image.size
        except (OSError, ValueError, Image.DecompressionBombError):
            return None

    def _strip(self, strip: str) -> Image.Image:
        """A strip, decoded; the last one is kept, since its tiles follow each other."""
        last = self._last[0] if self._last else None
        if last is None or last[0] != strip:
            with Image.open(io.BytesIO(self.data.read_below(strip))) as image:
                last = strip, image.convert("RGB")
            self._last[:] = [last]
        return last[1]

    def _mask(self, strip: str) -> NDArray[np.bool_] | None:
        """All masks of a strip together, bool (Y, X); None where there is none, or the strip is faultless."""
        if not strip.startswith(DEFECTS):
            return None
        stem = strip.rpartition("/")[2].removesuffix(".png")
        masks: list[NDArray[np.bool_]] = []
        for name in self._mask_names:
            if re.fullmatch(rf"{stem}_mask\d*\.png", name):
                with Image.open(io.BytesIO((self.data / MASKS).read_below(name))) as image:
                    masks.append(np.asarray(image.convert("L")) > 127)
        return np.any(masks, axis=0) if masks else None

    @functools.cached_property
    def _mask_names(self) -> list[str]:
        return (self.data / MASKS).names()


class AitexLayout:
    """`aitex:FABRIC/SPLIT=DATA`, with the fabric's number as in names (`00`), or `all`."""

    def open(self, data: UserFile, part: str, split: str, name: str) -> AitexSource:
        missing = next((folder for folder in (FAULTLESS, DEFECTS, MASKS) if not (data / folder).is_dir()), None)
        source = AitexSource(name=name or f"aitex-{part}-{split}", data=data, fabric=part, split=split)
        if missing is not None or not any(source._strips()):
            raise InputError(
                "not AITEX's layout, or no such fabric",
                code="defects-incomplete",
                where=data,
                expected=missing or f"strips NUMBER_DEFECT_{part}.png",
                found=", ".join(data.names()[:8]) or "nothing",
                hint=f"name the folder that holds {FAULTLESS}, {DEFECTS} and {MASKS}, as in aitex:00/train=FOLDER",
            )
        return source


def _parts(path: str) -> tuple[str, int]:
    """The strip of a tile, and the tile's number."""
    strip, _, name = path.rpartition("/")
    return f"{strip}.png", int(name.removesuffix(".png"))


def _cut(strip: Image.Image, number: int) -> Image.Image:
    side = strip.height
    return strip.crop((number * side, 0, (number + 1) * side, side))


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return data.getvalue()
