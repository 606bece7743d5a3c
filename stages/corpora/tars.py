"""Owns reading a tar of images, plain or WebDataset.

Nothing is ever extracted to disk, so names inside a tar cannot point anywhere.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from .names import is_image_name, utf8
from .source import Found

#: Sidecar members of a WebDataset sample that may carry its label are read up to this size.
_SIDECAR_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class TarSource:
    """An uncompressed tar. Labels come from `.cls` or `.json` members beside the image, else from folders."""

    name: str
    file: Location

    def walk(self) -> Iterator[Found]:
        images: list[Found] = []
        labels: dict[str, str] = {}
        seen: set[str] = set()
        try:
            with self.file.open() as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
                for member in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all, a kilobyte each
                    if not member.isreg():
                        continue
                    path = utf8(member.name, self.file)
                    if path in seen:
                        raise InputError("a tar holds the same name twice", where=f"{self.file}: {path}")
                    seen.add(path)
                    label = self._sidecar_label(tar, member)
                    if label is not None:
                        labels[_stem(path)] = label
                    folder = path.rpartition("/")[0].rpartition("/")[2]
                    images.append(Found(
                        path=path, offset=member.offset_data, size=member.size, label=folder or None,
                        is_image=is_image_name(path) and not member.issparse(),
                    ))  # fmt: skip
                raw.seek(tar.offset)
                if raw.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise InputError("a tar ends without its end mark: it was cut", where=self.file)
        except tarfile.TarError as error:
            hint = (
                "decompress it first"
                if self.file.name.endswith((".gz", ".tgz", ".bz2", ".xz", ".zst"))
                else None
            )
            raise InputError(
                "not a whole, uncompressed tar", where=f"{self.file}: {error}", hint=hint
            ) from error
        images.sort(key=lambda f: f.path.encode())
        for found in images:
            label = labels.get(_stem(found.path), found.label)
            yield Found(
                path=found.path, offset=found.offset, size=found.size, label=label, is_image=found.is_image
            )

    def _sidecar_label(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
        if not member.name.endswith((".cls", ".json")) or member.size > _SIDECAR_BYTES:
            return None
        file = tar.extractfile(member)
        data = file.read() if file is not None else b""
        if member.name.endswith(".cls"):
            return data.decode("utf-8", "replace").strip() or None
        try:
            value = json.loads(data)
        except ValueError:
            return None
        label = value.get("label") if isinstance(value, dict) else None
        return str(label) if isinstance(label, str | int) else None

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self.file.read_range(offset, size)


def _stem(path: str) -> str:
    """WebDataset's sample key: the path up to the first dot of its last part."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.partition(".")[0]
