"""Owns reading a tar of images, plain or WebDataset.

Nothing is ever extracted to disk, so names and links inside a tar cannot point anywhere outside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from ...pipeline.storage import RangeReader
from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from .images import image_extensions
from .label import MOST_SIDECAR_BYTES, Label, cls_label, json_label
from .names import has_extension, is_hidden_name, plain_path, shown
from .source import SourceFile
from .tar_members import TarFile, tar_members
from .tree import EnteredFolder, File, walk

#: Members that may carry the label of the image beside them. Where both do, the first counts.
_SIDECARS = {b".json": json_label, b".cls": cls_label}

#: Links on the way to one file, as Linux counts them.
_MOST_HOPS = 40

#: Parts of all their paths together.
_MOST_PARTS = 4096

_DIRECTORIES = {b"5", b"D"}  # the second is GNU's, of incremental archives


def is_tar(file: UserFile) -> bool:
    """Whether this is a tar, by its name, or, where that does not decide, by the first header of a file."""
    name = file.name.lower()
    if ".tar" in name or name.endswith(".tgz"):
        return True
    with contextlib.suppress(OSError):  # an error comes where it is read as something else
        return file.is_file() and file.read_range(257, 5) == b"ustar"
    return False


@dataclass(frozen=True, kw_only=True)
class TarSource:
    """An uncompressed tar. Labels come from `.json` or `.cls` members beside the image, else from folders.

    `extensions` is as in `FolderSource`.
    """

    name: str
    file: TarFile
    extensions: Collection[str] = field(default_factory=image_extensions)

    def walk(self) -> Iterator[SourceFile]:
        """As in `tree.walk`, of the folder that would lie there if the tar were unpacked.

        Raises:
            InputError: no whole tar, or two images or sidecars of one name.
            Unreachable: the disk or the mount gives an error.
        """
        members = _Members(self.file, self.extensions)
        reader = self.file.open_ranges()
        try:
            yield from walk(_Tar(members, reader), self.extensions)
        finally:
            reader.close()

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self.file.read_range(offset, size)


@dataclass(frozen=True, slots=True)
class _Data:
    """A file's bytes in the tar."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Link:
    """A link; where it is a hard one, `target` is a member's path, else it starts at the link's folder."""

    target: bytes
    hard: bool


@dataclass(frozen=True, slots=True)
class _Broken:
    """A member that has no bytes to read, with the reason."""

    problem: str


_Node = _Data | _Link | _Broken


class _Members:
    """What is in a tar: the node of each path, and all paths in bytewise order, folders' with a slash.

    Memory: a few hundred bytes a member; the paths are held flat, so that deep ones cost their bytes alone.
    """

    def __init__(self, file: TarFile, extensions: Collection[str]) -> None:
        self._file, self.extensions = file, extensions
        self.nodes: dict[bytes, _Node] = {}
        folders: set[bytes] = set()
        for member in tar_members(file):
            path = _encoded(plain_path(member.name))
            if member.type in _DIRECTORIES:
                if path != b".":
                    folders.add(path + b"/")
                continue
            node: _Node
            if member.islnk():
                target = _encoded(plain_path(member.linkname))
                there = self.nodes.get(target)
                # The present member of that name: a later one replaces it there, not here.
                node = there if isinstance(there, _Data) else _Link(target, hard=True)
            elif member.issym():
                node = _Link(_encoded(member.linkname), hard=False)
            elif member.issparse():
                node = _Broken("stored as a sparse file: pack it without --sparse")
            elif member.isreg():
                node = _Data(member.offset_data, member.size)
            else:
                node = _Broken(f"cannot be read: {_kind(member.type)}, not a file")
            self._add(path, node)
        self.paths = sorted([*self.nodes, *folders])

    def _add(self, path: bytes, node: _Node) -> None:
        before = self.nodes.get(path)
        if before is node:
            return  # GNU tar packs a file that it was given twice as a link to itself
        if before is not None and self._matters(shown(path)):
            raise InputError(
                "a tar holds the same name twice",
                code="tar-name-twice",
                where=f"{self._file}: {shown(path)}",
                hint="unpack it and name the folder, where the later one stays; or pack each image under its own name",
            )
        self.nodes[path] = node

    def _matters(self, path: str) -> bool:
        """Whether it makes a difference which of two members of one name counts."""
        parts = path.split("/")
        is_sidecar = path.endswith(tuple(map(bytes.decode, _SIDECARS)))
        return (is_sidecar or has_extension(parts[-1], self.extensions)) and not any(map(is_hidden_name, parts))

    def has_folder(self, prefix: bytes) -> bool:
        """Whether anything lies below this path, which ends with a slash."""
        at = bisect_left(self.paths, prefix)
        return at < len(self.paths) and self.paths[at].startswith(prefix)

    def beginning(self, prefix: bytes) -> Iterator[bytes]:
        """What lies in one folder, no deeper, and begins so: the rest of each path behind the last slash of `prefix`."""
        at, folder = bisect_left(self.paths, prefix), prefix.rpartition(b"/")[0]
        skip = len(folder) + 1 if b"/" in prefix else 0
        while at < len(self.paths) and self.paths[at].startswith(prefix):
            if b"/" not in (rest := self.paths[at][skip:]):
                yield rest
            at += 1

    def names(self, prefix: bytes) -> list[bytes]:
        """What lies in a folder; names of folders end with a slash."""
        names, at = [], bisect_left(self.paths, prefix)
        while at < len(self.paths) and self.paths[at].startswith(prefix):
            name, slash, _ = self.paths[at][len(prefix) :].partition(b"/")
            if slash:
                # What follows a folder's slash in bytewise order.
                at = bisect_left(self.paths, prefix + name + b"0", at)
            else:
                at += 1
            if name:
                names.append(name + slash)
        return names

    def resolve(self, path: bytes) -> _Data | _Broken | bytes:
        """What is at a member's path, or where a link there leads: a file, a folder (its path with a slash, or empty), or
        the reason why to none of them.

        Links are followed part by part, as a file system does; none leads out of the tar.
        """
        node = self.nodes[path]
        if not isinstance(node, _Link):
            return node
        target, at, hops, done = shown(node.target)[:200], list[bytes](), 0, 0
        to_do = deque(path.split(b"/"))
        while to_do:
            part = to_do.popleft()
            done += 1
            if part == b"..":
                if at and at[-1] != b"..":
                    at.pop()
                else:
                    at.append(part)  # there may be members with such names
                continue
            here = b"/".join([*at, part])
            there = self.nodes.get(here)
            if (to_do or not isinstance(there, _Data)) and self.has_folder(here + b"/"):
                at.append(part)
            elif isinstance(there, _Link) and there.target:
                hops += 1
                if hops > _MOST_HOPS:
                    return _Broken(f"cannot be read: {os.strerror(errno.ELOOP)}")
                if there.hard:
                    at.clear()
                elif there.target.startswith(b"/"):
                    return _Broken(f"cannot be read: a link out of the tar: {target}")
                to_do.extendleft(part for part in reversed(there.target.split(b"/")) if part not in {b"", b"."})
                if done + len(to_do) > _MOST_PARTS:
                    return _Broken(f"cannot be read: {os.strerror(errno.ENAMETOOLONG)}")
            elif there is None or isinstance(there, _Link) or to_do:
                return self._broken(at, target)
            else:
                return there
        folder = b"".join(part + b"/" for part in at)
        return folder if self.has_folder(folder) else self._broken(at, target)

    def _broken(self, at: list[bytes], target: str) -> _Broken:
        what = "a link out of the tar" if at[:1] == [b".."] else "a link to nothing in the tar"
        return _Broken(f"cannot be read: {what}: {target}")


@dataclass(frozen=True)
class _Tar:
    """A tar as a tree; a folder is called by its path with a slash, the top by nothing."""

    members: _Members
    reader: RangeReader

    def top(self) -> EnteredFolder[bytes]:
        return EnteredFolder(folder=b"", identity=b"")

    def enter(self, folder: bytes, name: bytes) -> EnteredFolder[bytes]:
        path = folder + name
        if self.members.has_folder(path + b"/"):
            return EnteredFolder(folder=path + b"/", identity=path + b"/")
        target = self.members.resolve(path)
        assert isinstance(target, bytes)
        return EnteredFolder(folder=target, identity=target, by_link=True)

    def names(self, folder: bytes) -> list[bytes]:
        return [name + b"/" if self._leads_to_folder(folder + name) else name for name in self.members.names(folder)]

    def _leads_to_folder(self, path: bytes) -> bool:
        is_link = isinstance(self.members.nodes.get(path), _Link)
        return is_link and not self.members.has_folder(path + b"/") and isinstance(self.members.resolve(path), bytes)

    def file(self, folder: bytes, name: bytes) -> File:
        target, label = self.members.resolve(folder + name), self._label(folder, name)
        if isinstance(target, _Data):
            return File(size=target.size, offset=target.offset, label=label)
        if isinstance(target, _Broken):
            return File(problem=target.problem, label=label)
        return File(problem=f"cannot be read: {os.strerror(errno.EISDIR)}", label=label)

    def is_label(self, folder: bytes, name: bytes) -> bool:
        stem, dot, extension = name.rpartition(b".")
        if not stem or dot + extension not in _SIDECARS:
            return False
        beside = self.members.beginning(folder + stem + b".")
        return any(has_extension(shown(other), self.members.extensions) for other in beside)

    def _label(self, folder: bytes, name: bytes) -> Label | None:
        """The label in the sidecar of exactly this name, else in that of WebDataset's key, which ends at the first dot."""
        for stem in dict.fromkeys((name.rpartition(b".")[0], name.partition(b".")[0])):
            target = [self._sidecar(folder + stem + extension, read) for extension, read in _SIDECARS.items()]
            labels = [label for label in target if label.text is not None or label.problem]
            if labels:
                return next((label for label in labels if label.text is not None), labels[0])
        return None

    def _sidecar(self, path: bytes, read: Callable[[bytes], Label]) -> Label:
        target = self.members.resolve(path) if path in self.members.nodes else None
        if isinstance(target, _Data) and target.size <= MOST_SIDECAR_BYTES:
            return read(self.reader.read(target.offset, target.size))
        return Label()


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _kind(member_type: bytes) -> str:
    kinds = {b"3": "a device", b"4": "a device", b"6": "a pipe"}
    return kinds.get(member_type) or f"a tar member of type {shown(member_type)!r}"
