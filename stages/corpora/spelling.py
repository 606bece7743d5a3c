"""Owns how a user spells a corpus: `PATH`, `NAME=PATH`, or `coop:NAME/SPLIT=DATA` and the like for a split of a data set; and labels of one."""

from __future__ import annotations

from pathlib import Path

#: What the spelling of a data set of classes begins with.
DATASET_PREFIX = "coop:"

#: What the spelling of one of defects on surfaces begins with (`defects.spelled`).
DEFECT_PREFIXES = ("mvtec:", "aitex:", "tilda:")


def split_name(argument: str) -> tuple[str, str]:
    """The two sides of `NAME=WHAT`; an argument without a name has an empty one."""
    given, equals, rest = argument.partition("=")
    if not equals or "/" in given or is_dataset(argument) or Path(argument).exists():
        return "", argument
    return given, rest


def is_dataset(what: str) -> bool:
    """Whether this is the spelling of a data set."""
    return what.startswith((DATASET_PREFIX, *DEFECT_PREFIXES))


def has_classes(what: str) -> bool:
    """Whether this is the spelling of a data set that has a list of classes."""
    return what.startswith(DATASET_PREFIX)


def split_generation(labels: str) -> tuple[str, int | None]:
    """`LABELS@2` is the place of labels, and generation 2 of them; without a number it is None."""
    place, at, number = labels.rpartition("@")
    return (place, int(number)) if at and number.isdecimal() else (labels, None)
