"""Owns freezing by name: which parts of a student stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from ...storage_schemas.errors import InputError
from ...storage_schemas.near_names import did_you_mean
from ..students.base import BaseStudent

#: Names in a student's backbone may be given without this.
_BACKBONE = "backbone."


def patterns_of(text: str) -> tuple[str, ...]:
    """The patterns that an option lists, with commas between them."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def freeze_by_name(student: BaseStudent, patterns: Sequence[str]) -> None:
    """Take from training what the patterns name: parameters, and modules with all that is in them.

    Frozen modules stay in eval mode: dropout does nothing, and the averages of batch norm stay as they are.

    Args:
        patterns: as `fnmatch` has them (`*` also stands for dots), of names in the student, or in its backbone.

    Raises:
        InputError: a pattern that names nothing; or nothing is left that trains.
    """
    modules = [name for name, module in student.named_modules() if name and any(True for _ in module.parameters())]
    names = dict.fromkeys([*modules, *(name for name, _ in student.named_parameters())])
    frozen: set[str] = set()
    for pattern in patterns:
        frozen |= matching(pattern, names, option="--freeze")
    for name, parameter in student.named_parameters():
        if any(name == part or name.startswith(f"{part}.") for part in frozen):
            parameter.requires_grad_(False)
    if not student.trained():
        raise InputError(
            "nothing of the student is left to train",
            code="nothing-trains",
            where="--freeze",
            expected="a part that trains",
            found=", ".join(patterns),
            hint="leave out a pattern",
        )
    student.hold_still([name for name in modules if name in frozen])


def matching(pattern: str, names: Iterable[str], *, option: str) -> set[str]:
    """The names that a pattern means, with or without `backbone.` in front.

    Raises:
        InputError: none; with those that are spelled nearly so.
    """
    names = list(names)
    found = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(short(name), pattern)}
    if not found:
        tops = dict.fromkeys(".".join(short(name).split(".")[:1]) for name in names if name != _BACKBONE[:-1])
        raise InputError(
            "the student has no part of this name",
            code="student-part-unknown",
            where=option,
            expected=f"parts of {', '.join(list(tops)[:12])}",
            found=pattern,
            hint=did_you_mean(
                pattern, [*dict.fromkeys(map(short, names)), *names], "patterns are as in a shell: 'blocks.[0-5]'"
            ),
        )
    return found


def short(name: str) -> str:
    """A name in the student, as it is in the backbone."""
    return name.removeprefix(_BACKBONE)
