"""Owns what this user's commands remember of weights files: the digest of the module that they fill, and that it was tried.

A digest takes seconds for a large model, and each command needs it. It is kept in the user's cache folder, one small file
for each weights file and model. It is used only while everything agrees that decides it: the file's path, size, inode, device and times
of change to the nanosecond, the model that it fills, the versions of the libraries that convert it, and a sample of the weights
as they are in memory. What was changed less than two seconds before it was read is not kept: a second change within one tick of
the file system's clock would leave the same times (git calls that racily clean). The folder may be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from ...pipeline.user_cache import recall, remember
from ...pipeline.user_files import FileState, UserFile
from ...storage_schemas.fingerprint import Json, digest_json
from .weights import weights_digest

#: Raised where what is remembered, or how it is compared, changes.
_FORMAT = 1

#: Of the notes in the user's cache folder.
_KIND = "weights"

#: A file must have been left alone for so long before it is read. File systems keep times to 2 seconds or better.
_LEAST_AGE_SECONDS = 2.0

#: What reads, converts and computes. `teachonce` is this package.
_LIBRARIES = ("teachonce", "torch", "open_clip_torch", "timm", "transformers", "safetensors")

#: Tensors up to so many bytes are in the sample whole; of larger ones a byte of each stride, which is prime to all sizes of numbers and rows.
_WHOLE, _STRIDE = 1 << 14, 4093


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A file of the cache.

    Attributes:
        facts: digest of what decides `digest`, see `KnownWeights`.
        sample: of the weights, see `weights_sample`.
        digest: of them, see `weights_digest`.
        tried: digests of the conditions under which the module was tried.
    """

    facts: str
    sample: str
    digest: str
    tried: tuple[str, ...] = ()


class KnownWeights:
    """What is known of a module that is filled from a file. Made before the file is read; `digest` comes first.

    Args:
        file: the state of the file; None for weights that are in none: nothing of them is remembered.
        filled: what is filled from it, as JSON: all that decides what becomes of the file's tensors, but for libraries.
        rehash: whether to compute everything anew. It is remembered all the same.
    """

    def __init__(self, file: FileState | None, filled: Json, *, rehash: bool = False) -> None:
        self._file, self._filled, self._rehash = file, filled, rehash
        self._facts = digest_json(
            {
                "format": _FORMAT,
                "file": None if file is None else file.to_json(),
                "filled": filled,
                "versions": dict(_versions()),
            }
        )
        self._entry: _Entry | None = None

    @staticmethod
    def of(path: str | None, filled: Json, *, rehash: bool = False) -> KnownWeights:
        """Of the file at a path; None for weights that are in no file."""
        return KnownWeights(None if path is None else UserFile.of(path).state(), filled, rehash=rehash)

    def beside(self, more: Json, *, rehash: bool = False) -> KnownWeights:
        """Of a larger module that the same file fills in part; `more` decides the rest."""
        return KnownWeights(self._file, [self._filled, more], rehash=self._rehash or rehash)

    def digest(self, module: nn.Module) -> str:
        """`weights_digest` of the module, computed if it is not known. Its weights are as they were read: neither cast nor moved."""
        sample = weights_sample(module)
        known = None if self._rehash else self._read()
        if known is None or (known.facts, known.sample) != (self._facts, sample):
            known = _Entry(facts=self._facts, sample=sample, digest=weights_digest(module))
            self._keep(known)
        self._entry = known
        return known.digest

    def is_tried(self, how: Json) -> bool:
        """Whether this module has been tried with success before, under the same conditions and on such a machine."""
        return self._entry is not None and _conditions(how) in self._entry.tried

    def note_tried(self, how: Json) -> None:
        """Remember that it was tried."""
        if self._entry is not None:
            self._entry = replace(self._entry, tried=(*self._entry.tried, _conditions(how)))
            self._keep(self._entry)

    def _read(self) -> _Entry | None:
        return None if self._file is None else recall(_KIND, self._key(self._file), _Entry)

    def _key(self, file: FileState) -> str:
        return digest_json([file.path, self._filled])

    def _keep(self, entry: _Entry) -> None:
        file = self._file
        if file is None or not file.is_settled(_LEAST_AGE_SECONDS):
            return
        if UserFile.of(file.path).state() == file:  # else it changed while it was read
            remember(_KIND, self._key(file), entry)


def weights_sample(module: nn.Module) -> str:
    """A digest that a change of weights is most unlikely to leave: of all names, types and shapes, and of bytes all over the tensors."""
    hasher = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        data = _bytes(value)
        hasher.update(data if data.nbytes <= _WHOLE else data[::_STRIDE].tobytes() + data[-_STRIDE:].tobytes())
    return hasher.hexdigest()


def _bytes(value: Tensor) -> Any:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _conditions(how: Json) -> str:
    """What decides the outcome of trying a module, beside its weights."""
    machine = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    return digest_json({"how": how, "machine": machine})


@functools.cache
def _versions() -> Mapping[str, str | None]:
    return {name: _version(name) for name in _LIBRARIES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
