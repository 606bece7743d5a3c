"""Owns the layout of MVTec AD: CATEGORY/train/good, CATEGORY/test/DEFECT and CATEGORY/ground_truth/DEFECT/NAME_mask.png.

Bergmann et al., IJCV 2021. Other data sets are published in this layout too (VisA, BTAD and others, by their converters).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ....pipeline.user_files import UserFile
from ....storage_schemas.errors import InputError
from ..folder import FolderSource
from ..source import SourceFile
from .defect_source import GOOD, TRAIN

_MASKS = "ground_truth"


@dataclass(frozen=True, kw_only=True)
class MvtecSource:
    """One split of a category: its folder."""

    name: str
    category: UserFile
    split: str

    has_masks = True

    def walk(self) -> Iterator[SourceFile]:
        return self._images.walk()

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self._images.read(path, offset, size)

    def mask(self, path: str) -> bytes | None:
        stem = path.rpartition(".")[0]
        for name in (f"{stem}_mask.png", f"{stem}.png"):
            if (self.category / _MASKS / name).is_file():
                return (self.category / _MASKS).read_below(name)
        return None

    @property
    def _images(self) -> FolderSource:
        return FolderSource(name=self.name, root=self.category / self.split)


class MvtecLayout:
    """`mvtec:CATEGORY/SPLIT=DATA`."""

    def open(self, data: UserFile, part: str, split: str, name: str) -> MvtecSource:
        category = data / part
        needed = (category / TRAIN / GOOD,) if split == TRAIN else (category / split, category / split / GOOD)
        missing = next((folder for folder in needed if not folder.is_dir()), None)
        if missing is not None:
            raise InputError(
                "not a category in MVTec AD's layout",
                code="defects-incomplete",
                where=category,
                expected=missing,
                found=", ".join(category.names()[:8]) or "nothing",
                hint="name the folder that holds the categories, as in mvtec:carpet/train=FOLDER",
            )
        return MvtecSource(name=name or f"{part}-{split}", category=category, split=split)
