"""Owns the layout of TILDA: images whose names, or whose folders' and own names, say fabric, kind of defect and number (c1r1e0n1).

cCrR is the fabric, eE the kind of defect (e0: none; e1 to e4), nN a number. `c1r1/c1r1e0n1.tif`, `c1r1e0/n1.png` and `c1/r1/e0/n1.png` are
all read, in any case. TILDA has no masks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ....pipeline.user_files import UserFile
from ....storage_schemas.errors import InputError
from ..folder import FolderSource
from ..source import SourceFile
from .defect_source import GOOD, TEST, is_held_back

#: At the end of a path: of several, the last one counts.
_NAMED = re.compile(r"(c\d+)[/_-]?(r\d+)[/_-]?e(\d+)[/_-]?n(\d+)\.[a-z]+$", re.IGNORECASE)

#: All fabrics together.
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class TildaSource:
    """One split of a fabric, or of all: of the faultless images of each, one in five is tested on, by their numbers."""

    name: str
    data: UserFile
    fabric: str
    split: str

    has_masks = False

    def walk(self) -> Iterator[SourceFile]:
        known: dict[str, tuple[str, str, int]] = {}
        files: list[SourceFile] = []
        for file in FolderSource(name=self.name, root=self.data).walk():
            named = _NAMED.search(file.path) if file.is_image else None
            if named is None:
                yield file if not file.is_image else replace(file, left_out="a name that does not say cCrReEnN")
                continue
            fabric, kind = (named[1] + named[2]).lower(), named[3]
            if self.fabric in (ALL, fabric):
                known[file.path] = fabric, kind, int(named[4])
                files.append(file)
        held_back = _held_back(known)
        for file in files:
            _, kind, _ = known[file.path]
            if (kind != "0" or file.path in held_back) == (self.split == TEST):
                yield replace(file, label=GOOD if kind == "0" else f"e{kind}")

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self.data.read_below(path)

    def mask(self, path: str) -> bytes | None:
        return None


class TildaLayout:
    """`tilda:FABRIC/SPLIT=DATA`, with a fabric as in `c1r1`, or `all`."""

    def open(self, data: UserFile, part: str, split: str, name: str) -> TildaSource:
        source = TildaSource(name=name or f"{part}-{split}", data=data, fabric=part.lower(), split=split)
        if not any(file.is_image for file in source.walk()):
            raise InputError(
                "no image of TILDA's here",
                code="defects-incomplete",
                where=data,
                expected=f"files such as {part if part != ALL else 'c1r1'}e0n1.tif",
                found=", ".join(data.names()[:8]) or "nothing",
                hint="name the folder that holds them, as in tilda:c1r1/train=FOLDER",
            )
        return source


def _held_back(known: dict[str, tuple[str, str, int]]) -> set[str]:
    """Paths of the faultless images that are tested on."""
    of_fabric: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for path, (fabric, kind, number) in known.items():
        if kind == "0":
            of_fabric[fabric].append((number, path))
    return {
        path for images in of_fabric.values() for place, (_, path) in enumerate(sorted(images)) if is_held_back(place)
    }
