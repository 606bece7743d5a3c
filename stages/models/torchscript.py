"""Owns TorchScript archives: their tensors by name, read without running any of the code in them.

An archive (`torch.jit.save`) is a zip file: `data.pkl` holds the module as objects of classes that the archive's own
code defines, `data/N` the tensors' bytes, `code/` that code. torch's reader of plain weights takes the same layout and
turns an archive away by one more record, `constants.pkl`. Here it is shown the archive without that record, and
objects that only hold attributes stand in for the classes of the archive; every other class is refused by that reader.
"""

from __future__ import annotations

import ast
import io
import re
import zipfile
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError

#: Where the names of an archive's own classes start.
_OWN = "__torch__."

#: Functions that type a list or dict for TorchScript; in Python each returns its first argument (torch/jit/_pickle.py).
_TYPING = tuple(
    f"torch.jit._pickle.{name}"
    for name in (
        "build_boollist",
        "build_doublelist",
        "build_intlist",
        "build_tensorlist",
        "restore_type_tag",
    )
)

#: More attributes or levels than any model has: an object that holds itself, or one object many times over.
_MOST_NAMES, _MOST_LEVELS = 1_000_000, 64

#: Bytes of source read for one class.
_MOST_SOURCE = 4 << 20


@dataclass(frozen=True, kw_only=True)
class TorchScript:
    """What an archive holds.

    Attributes:
        tensors: parameters and buffers on the CPU, under the names of the module's `state_dict`.
        values: attributes that are whole numbers, floats, texts, or tensors that are neither parameter nor buffer.
        classes: names of the classes of its modules, such as `QuickGELU`.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    classes: frozenset[str]


class _Object:
    """Stands in for an object of the archive's code: its attributes, and nothing else of it.

    Class attribute `registered`: names of its parameters and buffers; None where the source does not list them.
    """

    registered: frozenset[str] | None = None

    def __new__(cls, *arguments: Any) -> _Object:
        made = super().__new__(cls)
        made.attributes = {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.attributes = state

    attributes: Any


def _first(value: Any, *rest: Any) -> Any:
    return value


def is_torchscript(location: UserFile) -> bool:
    """Whether a file is a zip archive with TorchScript's own record. False for a damaged zip file."""
    with location.open() as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return any(re.fullmatch(r"[^/]+/constants\.pkl", name) for name in archive.namelist())
        except (zipfile.BadZipFile, OSError):
            return False


def read_torchscript(location: UserFile) -> TorchScript:
    """The tensors of an archive. No copy of the file is made; nothing in it is run.

    Raises:
        InputError: its records claim more than the file holds, or its modules are not plain objects.
        Exception: of torch's own many kinds for bad bytes, and where it names a class that is not its own.
    """
    with location.open() as file, zipfile.ZipFile(file) as archive:
        _check_sizes(archive, location)
        shown: Any = _Shown(file, archive.start_dir)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(shown)
        classes = [name for name in names if name.startswith(_OWN)]
        stand_ins: list[Any] = [(_stand_in(archive, name), name) for name in classes]
        with torch.serialization.safe_globals([*stand_ins, *((_first, name) for name in _TYPING)]):
            shown.seek(0)
            root = torch.load(shown, map_location="cpu", weights_only=True, mmap=False)
    if not isinstance(root, _Object):
        raise InputError(
            "not a file of weights",
            code="weights-malformed",
            where=location,
            expected="a module",
            found=type(root).__name__,
        )
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    left = [(root, "", 0)]
    names_seen = 0
    while left:
        module, prefix, level = left.pop()
        if not isinstance(module.attributes, dict):
            raise InputError(
                "cannot read weights",
                code="weights-unreadable",
                where=location,
                found=f"an object that only the file's own code can unpack ({prefix or 'the whole'})",
                hint="where you trust the file, save its weights alone: "
                "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)",
            )
        below: list[tuple[_Object, str, int]] = []
        for name, value in module.attributes.items():
            if isinstance(value, _Object):
                below.append((value, f"{prefix}{name}.", level + 1))
            elif isinstance(value, Tensor) and (module.registered is None or name in module.registered):
                tensors[f"{prefix}{name}"] = value.detach()
            elif isinstance(value, (Tensor, int, float, str)) and not isinstance(value, bool):
                values[f"{prefix}{name}"] = value
        left += reversed(below)
        names_seen += len(module.attributes)
        if level > _MOST_LEVELS or names_seen > _MOST_NAMES:
            raise InputError(
                "not a file of weights", code="weights-malformed", where=location, found="modules without end"
            )
    return TorchScript(tensors=tensors, values=values, classes=frozenset(name.rpartition(".")[2] for name in classes))


class _Shown(io.RawIOBase):
    """A TorchScript archive as torch's reader of weights is to see it: `constants.pkl` has another name."""

    def __init__(self, file: BinaryIO, directory_at: int) -> None:
        self._file = file
        self._at = 0
        file.seek(directory_at)
        self._directory_at = directory_at
        self._directory = file.read().replace(b"/constants.pkl", b"/constants.bin")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = self._directory_at + len(self._directory)
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        if self._at < self._directory_at:
            self._file.seek(self._at)
            with view[: self._directory_at - self._at] as part:
                done = self._file.readinto(part)  # type: ignore[attr-defined]
        if self._at + done >= self._directory_at:
            start = self._at + done - self._directory_at
            rest = self._directory[start : start + len(view) - done]
            view[done : done + len(rest)] = rest
            done += len(rest)
        self._at += done
        return done


def _check_sizes(archive: zipfile.ZipFile, location: UserFile) -> None:
    """torch stores what it loads uncompressed and once, so a record cannot be larger than the file is."""
    records = [r for r in archive.infolist() if re.fullmatch(r"[^/]+/(data\.pkl|data/.*)", r.filename)]
    claimed = sum(max(record.file_size, record.compress_size) for record in records)
    held = location.size() or 0
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if claimed > held or packed:
        raise InputError(
            "cannot read weights",
            code="weights-unreadable",
            where=location,
            found=f"a compressed record ({packed[0]})" if packed else f"records of {claimed} bytes in a file of {held}",
        )


def _stand_in(archive: zipfile.ZipFile, name: str) -> type[_Object]:
    return type("_Object", (_Object,), {"registered": _registered(archive, name)})


def _registered(archive: zipfile.ZipFile, name: str) -> frozenset[str] | None:
    """The names that a class's source, read as text, lists as parameters and buffers; None if it lists none."""
    module, _, own = name.rpartition(".")
    root = archive.namelist()[0].partition("/")[0]
    try:
        with archive.open(f"{root}/code/{module.replace('.', '/')}.py") as source:
            text = source.read(_MOST_SOURCE).decode(errors="replace")
    except KeyError:
        return None
    found = re.search(
        rf"^class {re.escape(own)}\(Module\):\n  __parameters__ = (\[.*\])\n  __buffers__ = (\[.*\])\n",
        text,
        re.M,
    )
    if found is None:
        return None
    try:
        return frozenset(str(item) for group in found.groups() for item in ast.literal_eval(group))
    except (ValueError, SyntaxError):
        return None
