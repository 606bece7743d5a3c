"""Owns CoOp's `split_zhou_*.json`: lists of [path, label id, class name] under train, val and test."""

from __future__ import annotations

from ....pipeline.user_files import UserFile
from ....storage_schemas.errors import InputError
from ..text_file import read_user_json
from .layouts import SPLITS
from .listing import Listing, check_each_once, class_name, image_path, shown


def read_split_file(file: UserFile) -> Listing:
    """The content of a split file.

    Raises:
        InputError: no JSON; another shape; a path that leaves the images' folder or stands twice in a split; ids and names of
            classes that contradict each other, or ids with gaps.
    """
    whole = read_user_json(file)
    if not isinstance(whole, dict) or not all(isinstance(whole.get(split), list) for split in SPLITS):
        raise InputError(
            "not a split file of CoOp's",
            code="split-file-malformed",
            where=file,
            expected="lists under train, val and test",
            found=", ".join(whole) if isinstance(whole, dict) and whole else shown(whole),
        )
    classes = _Classes()
    images: dict[str, list[tuple[str, str]]] = {}
    for split in SPLITS:
        images[split] = []
        for number, entry in enumerate(whole[split], 1):
            where = f"{file}, {split}, entry {number}"
            if not isinstance(entry, list) or len(entry) != 3 or type(entry[1]) is not int:
                raise InputError(
                    "a split file's entry has another shape",
                    code="split-file-entry-malformed",
                    where=where,
                    expected="[path, label id, class name]",
                    found=shown(entry),
                )
            path, name = image_path(entry[0], where), class_name(entry[2], where)
            classes.add(entry[1], name, where)
            images[split].append((path, name))
        check_each_once([path for path, _ in images[split]], f"{file}, {split}")
    return Listing(class_names=classes.in_order(file), images=images)


class _Classes:
    """Ids and names, one to one."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._ids: dict[str, int] = {}

    def add(self, label: int, name: str, where: str) -> None:
        known = self._names.setdefault(label, name)
        if known != name:
            raise InputError(
                "a label id has two class names",
                code="label-id-two-names",
                where=f"{where}, id {label}",
                expected=shown(known),
                found=shown(name),
            )
        first = self._ids.setdefault(name, label)
        if first != label:
            raise InputError(
                "a class name has two label ids",
                code="class-name-two-ids",
                where=f"{where}, {shown(name)}",
                expected=first,
                found=label,
            )

    def in_order(self, file: UserFile) -> tuple[str, ...]:
        count = len(self._names)
        if not count:
            raise InputError("a split file without images", code="split-file-empty", where=file)
        missing = next((i for i in range(count) if i not in self._names), None)
        if missing is not None:
            raise InputError(
                "label ids with gaps",
                code="label-ids-with-gaps",
                where=file,
                expected=f"{count} classes with ids 0 to {count - 1}",
                found=f"no id {missing}",
            )
        return tuple(self._names[i] for i in range(count))
