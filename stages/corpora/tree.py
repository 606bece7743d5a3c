"""Owns the one walk over a tree of files, a folder's or a tar's: its order, its labels, its links, and what it leaves out.

A file with an image's name always has a row: where it cannot be read, the row says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from . import left_out
from .label import Label, label_of
from .names import MOST_PATH_BYTES, has_extension, is_hidden_name, shown
from .reading import reason_of
from .source import SourceFile

#: A folder is entered through this many links, then no more.
_MOST_LINKS = 1000

_NOT_UTF8 = "cannot be read: its name is not UTF-8"

Folder = TypeVar("Folder")


@dataclass(frozen=True, kw_only=True)
class File:
    """The facts of a file with an image's name.

    Attributes:
        size, offset, problem: as in `SourceFile`.
        label: what stands beside it as its label; None where nothing does.
    """

    size: int = 0
    offset: int = -1
    label: Label | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class EnteredFolder(Generic[Folder]):
    """A folder that was entered.

    Attributes:
        folder: what the tree calls it.
        identity: equal where it is the same folder by another path.
        by_link: whether a link led there.
    """

    folder: Folder
    identity: Hashable
    by_link: bool = False


class Tree(Protocol[Folder]):
    """Files below folders; links are followed."""

    def top(self) -> EnteredFolder[Folder]:
        """The folder that holds all others."""

    def enter(self, folder: Folder, name: bytes) -> EnteredFolder[Folder]:
        """A folder in a folder, or what a link there leads to.

        Raises:
            OSError: it cannot be entered.
        """

    def names(self, folder: Folder) -> list[bytes]:
        """All names in a folder, in any order, each once; those of folders and of links to folders end in `/`.

        Raises:
            OSError: it cannot be listed.
        """

    def file(self, folder: Folder, name: bytes) -> File:
        """What is known of a file; never raises for what is wrong with it."""

    def is_label(self, folder: Folder, name: bytes) -> bool:
        """Whether a file without an image's name is read as the label of an image beside it."""


@dataclass(slots=True)
class _Level(Generic[Folder]):
    """One folder on the way down.

    Attributes:
        prefix: its path with a slash, or empty.
        label: of the images in it.
        problem: why nothing below it can be read.
        names: what is still to come, as shown, the next one last.
        odd: names that are not UTF-8, by what is shown of them.
    """

    entered: EnteredFolder[Folder]
    prefix: str
    label: Label
    problem: str | None
    names: list[bytes]
    odd: dict[bytes, bytes]


def walk(tree: Tree[Folder], extensions: Container[str]) -> Iterator[SourceFile]:
    """All samples in bytewise order of their paths, and what is left out, with its kind.

    Memory: the names of one folder and of those above it.

    Args:
        extensions: by which names are those of samples, lower case and with the dot.

    Raises:
        OSError: the tree itself cannot be listed.
    """
    links: Counter[Hashable] = Counter()
    levels = [_level(tree, tree.top(), "", None)]
    while levels:
        level = levels[-1]
        if not level.names:
            levels.pop()
            continue
        as_shown = level.names.pop()
        text = as_shown.decode()
        is_folder = text.endswith("/")
        name = text[:-1] if is_folder else text
        path = level.prefix + name
        if is_hidden_name(name):
            yield _left_out(path, left_out.HIDDEN)
        elif level.names and level.names[-1] == as_shown:
            yield _left_out(path, left_out.SAME_PATH)
        elif len(path) * 4 > MOST_PATH_BYTES and len(path.encode()) > MOST_PATH_BYTES:
            yield _left_out(path, left_out.TOO_LONG)
        elif is_folder:
            odd = level.odd.get(as_shown)
            problem = level.problem if odd is None else _NOT_UTF8
            try:
                entered = tree.enter(level.entered.folder, (odd or as_shown)[:-1])
                kind = _not_to_enter(entered, levels, links)
                if kind is None:
                    levels.append(_level(tree, entered, path + "/", problem))
            except OSError as error:
                yield _found(path, level, File(problem=reason_of(error)))
                continue
            if kind is not None:
                yield _left_out(path, kind)
        elif not has_extension(name, extensions):
            if not tree.is_label(level.entered.folder, as_shown):
                yield _left_out(path, left_out.NO_IMAGE_NAME)
        elif level.problem is not None or as_shown in level.odd:
            yield _found(path, level, File(problem=_NOT_UTF8))
        else:
            yield _found(path, level, tree.file(level.entered.folder, as_shown))


def _level(tree: Tree[Folder], entered: EnteredFolder[Folder], prefix: str, problem: str | None) -> _Level[Folder]:
    # Names alone, as bytes: a folder of millions of files is held at once, so that it can be sorted.
    names = tree.names(entered.folder)
    odd = {text: raw for raw in names if not raw.isascii() and (text := shown(raw).encode()) != raw}
    if odd:
        for name in names:
            odd.pop(name, None)  # a good name that looks like a bad one keeps its path
        names = [shown(raw).encode() for raw in names]
    # "a/" sorts where a walk of full paths would put it, so paths come out in bytewise order.
    names.sort(reverse=True)
    label = label_of(prefix[:-1].rpartition("/")[2] or None)
    if label.text == "..":
        label = Label()
    return _Level(entered, prefix, label, problem, names, odd)


def _not_to_enter(entered: EnteredFolder[Folder], levels: list[_Level[Folder]], links: Counter[Hashable]) -> str | None:
    """The kind that a folder is left out as; None for one to enter."""
    if any(level.entered.identity == entered.identity for level in levels):
        return left_out.LINK_ABOVE
    if entered.by_link:
        links[entered.identity] += 1
        if links[entered.identity] > _MOST_LINKS:
            return left_out.LINKED_TOO_OFTEN
    return None


def _found(path: str, level: _Level[Folder], file: File) -> SourceFile:
    label = file.label or level.label
    return SourceFile(
        path=path,
        offset=file.offset,
        size=file.size,
        label=label.text,
        no_label=label.problem,
        problem=file.problem,
    )


def _left_out(path: str, kind: str) -> SourceFile:
    return SourceFile(path=path, size=0, label=None, left_out=kind)
