"""Owns patterns that name many files of a corpus at once: `{000..999}`, `{train,val}`, `*`, `?` and `[…]`, here or in a bucket.

A shell resolves patterns of local files before a command sees them; those in quotes, in run files and in URLs come here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice

from ...pipeline.storage import Location, is_url
from ...storage_schemas.errors import InputError
from ...storage_schemas.plain_text import typed

#: What makes a part of a path a pattern.
_BRACE, _WILD = "{", "*?["

#: Names that one pattern may stand for.
_MOST = 1_000_000

#: Numbers from one to another in braces, perhaps in steps.
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?\}")

_TAR = ".tar"


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A file that a pattern stands for.

    Attributes:
        path: as it would be typed.
        name: where it lies below the first folder that the pattern leaves open, without `.tar`.
    """

    path: str
    name: str


def is_pattern(what: str) -> bool:
    """Whether this names files by a pattern: what is there under this very name does not."""
    if not any(letter in what for letter in _BRACE + _WILD):
        return False
    return is_url(what) or not Location.of(what).exists()


def matched(pattern: str) -> Iterator[Matched]:
    """The files that a pattern stands for: lists in the order in which they are written, names in a folder in bytewise order.

    What braces spell out is not looked for here; it need not be there.

    Raises:
        InputError: braces that do not close, too many names, or nothing that fits a `*`.
        StorageError: a folder cannot be listed.
    """
    begins = len(_fixed(pattern))
    for path in _without_braces(pattern):
        found = list(_listed(path)) if any(letter in path for letter in _WILD) else [path]
        if not found:
            raise InputError(
                "nothing fits a pattern",
                code="pattern-matches-nothing",
                where=path,
                expected="at least one file",
                found="none",
                hint=f"see what is there: {_look(_fixed(path))}",
            )
        for one in found:
            yield Matched(path=one, name=one[begins:].removesuffix(_TAR))


def _look(folder: str) -> str:
    return f"list {folder}" if is_url(folder) else f"ls {typed(folder or '.')}"


def _without_braces(pattern: str) -> list[str]:
    if _BRACE not in pattern:
        return [pattern]
    from braceexpand import braceexpand

    if any(_length(found) > _MOST for found in _RANGE.finditer(pattern)):
        raise _too_many(pattern)  # at once: a million names take half a minute
    try:
        names = list(islice(braceexpand(pattern, escape=False), _MOST + 1))
    except ValueError as error:
        raise InputError(
            "a pattern whose braces do not close",
            code="pattern-malformed",
            where=pattern,
            expected="such as {000..999}.tar or {train,val}.tar",
            hint="close them",
        ) from error
    if len(names) > _MOST:
        raise _too_many(pattern)
    return names


def _length(found: re.Match[str]) -> int:
    return abs(int(found[2]) - int(found[1])) // max(int(found[3] or 1), 1) + 1


def _too_many(pattern: str) -> InputError:
    return InputError(
        "a pattern stands for too many names",
        code="pattern-malformed",
        where=pattern,
        expected=f"{_MOST} at most",
        found="more",
        hint="write a narrower one",
    )


def _fixed(pattern: str) -> str:
    """What stands before the first part that is a pattern, with its slash."""
    first = min((i for i, letter in enumerate(pattern) if letter in _BRACE + _WILD), default=len(pattern))
    return pattern[: pattern.rfind("/", 0, first) + 1]


def _listed(pattern: str) -> Iterator[str]:
    """What fits a pattern of `*`, `?` and `[…]`, part by part; none of them stands for a slash, or for a dot at the front."""
    fixed = _fixed(pattern)
    first, *rest = pattern[len(fixed) :].split("/")
    for entry in sorted(Location.of(fixed or ".").entries()):
        name = entry.rstrip("/")
        if not fnmatchcase(name, first) or (name.startswith(".") and not first.startswith(".")):
            continue
        if rest and entry.endswith("/"):
            deeper = f"{fixed}{entry}{'/'.join(rest)}"
            if any(letter in "/".join(rest) for letter in _WILD):
                yield from _listed(deeper)
            elif Location.of(deeper).exists():
                yield deeper
        elif not rest and not entry.endswith("/"):
            yield fixed + name
