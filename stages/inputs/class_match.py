"""Owns matching labels, such as folder names, with class names; and the split into base and novel classes."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from ..corpora.name_list import read_names

#: What `--base-classes` takes for the first ⌈C/2⌉ class ids, as PromptKD (and CoOp before it) splits.
FIRST_HALF = ("@half", "first-half")


@dataclass(frozen=True, kw_only=True)
class Match:
    """What became of a label: the class id, or None and why."""

    class_id: int | None
    reason: str = ""


class ClassMatcher:
    """Finds the class that a label names.

    Case, underscores, hyphens and runs of blanks make no difference. Either side may be a list of synonyms
    with commas between them, as ImageNet's names are ("tench, Tinca tinca"); a whole name goes before a
    synonym. A label that fits several classes equally well fits none.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = tuple(class_names)
        exact = {name: {i} for i, name in enumerate(self._names)}
        whole: dict[str, set[int]] = {}
        synonym: dict[str, set[int]] = {}
        for i, name in enumerate(self._names):
            whole.setdefault(_normal(name), set()).add(i)
            for part in _synonyms(name):
                synonym.setdefault(part, set()).add(i)
        self._exact, self._whole, self._synonym = exact, whole, synonym

    def match(self, label: str) -> Match:
        """The class of a label."""
        normal = _normal(label)
        found = (
            self._exact.get(label)
            or self._whole.get(normal)
            or self._synonym.get(normal)
            or set[int]().union(*(self._synonym.get(part, set()) for part in _synonyms(label)))
        )
        if len(found) == 1:
            return Match(class_id=next(iter(found)))
        if found:
            several = ", ".join(repr(self._names[i]) for i in sorted(found)[:3])
            return Match(class_id=None, reason=f"fits {len(found)} classes: {several}")
        return Match(class_id=None, reason=f"no such class{self._near(normal)}")

    def _near(self, normal: str) -> str:
        near = difflib.get_close_matches(normal, self._synonym, n=1, cutoff=0.75)
        return f"; the nearest is {self._names[min(self._synonym[near[0]])]!r}" if near else ""


def base_classes(spec: str, class_names: Sequence[str]) -> NDArray[np.bool_]:
    """Which classes are base classes, bool (class,); the others are novel.

    Args:
        spec: `@half` or `first-half` for the first ⌈C/2⌉ ids; a file as `read_names` takes it; or names
            with commas between them.
        class_names: C names in the order of the logits.

    Raises:
        InputError: a name that is no class, or a split that leaves one side empty.
    """
    base_C = np.zeros(len(class_names), np.bool_)
    if spec in FIRST_HALF:
        base_C[: -(-len(class_names) // 2)] = True
    else:
        matcher = ClassMatcher(class_names)
        for name in _listed_names(spec, matcher):
            match = matcher.match(name)
            if match.class_id is None:
                raise InputError(
                    f"--base-classes names no class: {match.reason}", code="base-class-unknown", where=name
                )
            base_C[match.class_id] = True
    if base_C.all() or not base_C.any():
        raise InputError(
            "base and novel classes must both be there",
            code="base-classes-one-sided",
            where="--base-classes",
            expected=f"1 to {len(class_names) - 1} of {len(class_names)} classes",
            found=int(base_C.sum()),
        )
    return base_C


def _listed_names(spec: str, matcher: ClassMatcher) -> Iterable[str]:
    location = UserFile.of(spec)
    if location.exists() and not location.is_dir():
        return read_names(location)
    if "," not in spec and matcher.match(spec).class_id is None:
        raise InputError(
            "no such file, and no class of that name",
            code="base-class-unknown",
            where=f"--base-classes {spec}",
            hint="give a file with one name a line, names with commas between them, or @half",
        )
    return [part.strip() for part in spec.split(",") if part.strip()]


def _normal(name: str) -> str:
    return " ".join(re.sub(r"[_\-\s]+", " ", unicodedata.normalize("NFKC", name)).split()).casefold()


def _synonyms(name: str) -> set[str]:
    return {part for part in (_normal(p) for p in name.split(",")) if part}
