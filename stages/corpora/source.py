"""Owns what every kind of source gives: the files found in it, one after another, and their bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file in a source.

    Attributes:
        path: POSIX path relative to the source; unique within it.
        offset: first byte within a tar; -1 for a file of its own.
        size: bytes; -1 where it is known only by reading (URLs).
        label: class name, where the source has one.
        left_out: the kind (of `left_out`) that it is left out as; empty for an image.
        place: its position, from 0 on, in the order that the source itself gives its images; -1 where it gives none.
        no_label: what stands in the place of its label and is not one, as in `Label.problem`; empty where nothing does.
        problem: why it cannot be read, where that is known already; it is then not read.
    """

    path: str
    offset: int = -1
    size: int
    label: str | None
    left_out: str = ""
    place: int = -1
    no_label: str = ""
    problem: str | None = None

    @property
    def is_image(self) -> bool:
        """Whether it has a row."""
        return not self.left_out


class Source(Protocol):
    """One thing that the user brought."""

    @property
    def name(self) -> str:
        """Short name; the first part of its samples' paths where there are several sources."""

    def walk(self) -> Iterator[SourceFile]:
        """All files, in bytewise order of their paths."""

    def read(self, path: str, offset: int, size: int) -> bytes:
        """The bytes of one file that `walk` found."""
