"""Owns FGVC-Aircraft's own files: variants.txt names the classes, images_variant_SPLIT.txt the images."""

from __future__ import annotations

from collections.abc import Sequence

from ....pipeline.user_files import UserFile
from ....storage_schemas.errors import InputError
from ..text_file import read_lines
from .listing import Listing, check_each_once, class_name, image_path, shown


def read_aircraft(folder: UserFile, splits: Sequence[str]) -> Listing:
    """The content of FGVC-Aircraft's files for these splits; the classes come in the order of variants.txt.

    Raises:
        InputError: a class that stands twice in variants.txt, or not at all; a path that leaves the images' folder
            or stands twice in a split.
    """
    variants = folder / "variants.txt"
    names: dict[str, None] = {}
    for number, line in read_lines(variants):
        where = f"{variants}, line {number}"
        if class_name(line, where) in names:
            raise InputError("a class name stands twice", code="class-name-twice", where=where, found=shown(line))
        names[line] = None
    if not names:
        raise InputError("an empty class list", code="class-list-empty", where=variants)
    images: dict[str, list[tuple[str, str]]] = {}
    for split in splits:
        file = folder / f"images_variant_{split}.txt"
        images[split] = []
        for number, line in read_lines(file):
            where = f"{file}, line {number}"
            image, _, name = line.partition(" ")
            if name not in names:
                raise InputError(
                    f"a class that {variants.name} lacks",
                    code="class-not-listed",
                    where=where,
                    found=shown(name),
                )
            images[split].append((image_path(f"{image}.jpg", where), name))
        check_each_once([path for path, _ in images[split]], str(file))
    return Listing(class_names=tuple(names), images=images)
