"""Owns the spelling `mvtec:CATEGORY/SPLIT=DATA`, `aitex:FABRIC/SPLIT=DATA`, `tilda:FABRIC/SPLIT=DATA`."""

from __future__ import annotations

from collections.abc import Mapping

from ....pipeline.user_files import UserFile
from ....storage_schemas.errors import InputError
from .aitex import AitexLayout
from .defect_source import TEST, TRAIN, DefectLayout, DefectSource
from .mvtec import MvtecLayout
from .tilda import TildaLayout

#: By what a spelling begins with, less its colon. `spelling.DEFECT_PREFIXES` has the same names.
LAYOUTS: Mapping[str, DefectLayout] = {"mvtec": MvtecLayout(), "aitex": AitexLayout(), "tilda": TildaLayout()}


def open_defects(spelling: str, *, name: str = "") -> DefectSource:
    """The source that a spelling names.

    Args:
        spelling: as above; DATA is the folder of the data set.
        name: of the source; '' for PART-SPLIT.

    Raises:
        InputError: another spelling, or not all of its folders.
    """
    layout, _, rest = spelling.partition(":")
    what, _, data = rest.partition("=")
    part, _, split = what.partition("/")
    if not part or split not in (TRAIN, TEST) or not data:
        raise InputError(
            "not the name of a split of a data set of defects",
            code="defects-name-malformed",
            where=spelling,
            expected=f"{layout}:PART/train=DATA or {layout}:PART/test=DATA",
            found=f"PART {part or 'missing'}, split {split or 'missing'}, DATA {data or 'missing'}",
            hint="as in mvtec:carpet/train=FOLDER, aitex:00/train=FOLDER, tilda:c1r1/train=FOLDER",
        )
    root = UserFile.of(data)
    if not root.is_dir():
        raise InputError(
            "no such folder", code="folder-missing", where=root, hint="name the folder that holds the data set"
        )
    return LAYOUTS[layout].open(root, part, split, name)
