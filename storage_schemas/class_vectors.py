"""Owns class vectors: what turns an embedding into logits, with the names and their order."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from .errors import DamagedError, IncompleteError
from .fingerprint import Json, digest_json
from .json_file import as_schema
from .plain_text import counted, typed
from .zarr_damage import readable

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class ClassVectors:
    """logits_NC = logit_scale * embedding_ND @ vectors_CD.T + bias_C, in fp32.

    Attributes:
        names: C class names; their order is the order of the logits.
        vectors_CD: fp32 (class, channel); rows have length 1 for text features.
        bias_C: fp32 (class,), or None.
        logit_scale: the factor itself, not its logarithm.
        normalized: whether embeddings are L2-normalised before they are compared with the vectors.
        base_C: bool (class,): which are base classes, the others being novel; None where they are not marked.
    """

    names: tuple[str, ...]
    vectors_CD: NDArray[np.float32]
    bias_C: NDArray[np.float32] | None
    logit_scale: float
    normalized: bool
    base_C: NDArray[np.bool_] | None = None

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def base_names(self) -> tuple[str, ...] | None:
        """Names of the base classes, where they are marked."""
        if self.base_C is None:
            return None
        return tuple(name for name, is_base in zip(self.names, self.base_C, strict=True) if is_base)

    @property
    def embed_dim(self) -> int:
        return int(self.vectors_CD.shape[1])

    @property
    def digest(self) -> str:
        """blake2b-128 over names, numbers, scale and marks, in hexadecimal."""
        state = hashlib.blake2b(digest_size=16)
        head: list[Json] = [list(self.names), self.logit_scale, self.normalized, self.bias_C is not None]
        if self.base_C is not None:
            head.append(self.base_C.tolist())
        state.update(digest_json(head).encode())
        state.update(np.ascontiguousarray(self.vectors_CD, "<f4").tobytes())
        if self.bias_C is not None:
            state.update(np.ascontiguousarray(self.bias_C, "<f4").tobytes())
        return state.hexdigest()

    @overload
    def logits(self, embedding_ND: NDArray[Any]) -> NDArray[np.float32]: ...
    @overload
    def logits(self, embedding_ND: torch.Tensor) -> torch.Tensor: ...
    def logits(self, embedding_ND: NDArray[Any] | torch.Tensor) -> NDArray[np.float32] | torch.Tensor:
        """fp32 logits (sample, class) of embeddings (sample, channel) of any float type, as the store holds them.

        An array gives an array. A torch tensor gives a tensor on its device; gradients flow to the embeddings, and autocast
        changes nothing. The class vectors are copied to that device in each call: a trainer keeps them there itself.
        """
        if not isinstance(embedding_ND, np.ndarray):  # a tensor: torch is imported already
            return self._tensor_logits(embedding_ND)
        logits_NC = np.float32(self.logit_scale) * (embedding_ND.astype(np.float32) @ self.vectors_CD.T)
        return logits_NC if self.bias_C is None else logits_NC + self.bias_C

    def _tensor_logits(self, embedding_ND: torch.Tensor) -> torch.Tensor:
        import torch

        def there(values: NDArray[np.float32]) -> torch.Tensor:
            return torch.from_numpy(np.require(values, np.float32, ["C", "W"])).to(embedding_ND.device)

        kind = embedding_ND.device.type
        has_autocast = torch.amp.is_autocast_available(kind)
        with torch.autocast(kind, enabled=False) if has_autocast else contextlib.nullcontext():
            logits_NC = self.logit_scale * (embedding_ND.float() @ there(self.vectors_CD).T)
            return logits_NC if self.bias_C is None else logits_NC + there(self.bias_C)

    def check(self, where: object) -> None:
        """Refuse parts that do not belong together, as a file from elsewhere may hold them.

        Raises:
            DamagedError: there are other numbers of names, rows, biases or marks, or no class.
        """
        count, shape = len(self.names), self.vectors_CD.shape
        others = [part.shape for part in (self.bias_C, self.base_C) if part is not None]
        if not count or len(shape) != 2 or shape[0] != count or not shape[1] or any(o != (count,) for o in others):
            raise DamagedError(
                "class names and class vectors do not belong together",
                code="vectors-do-not-fit-names",
                where=where,
                expected=f"({count}, channels)",
                found=", ".join(map(str, (shape, *others))),
                hint="copy or write them again",
            )

    def __repr__(self) -> str:
        """On one line: the arrays have thousands of numbers."""
        marked = "" if self.base_C is None else f", {int(self.base_C.sum())} of them base"
        bias = "" if self.bias_C is None else ", with a bias"
        return (
            f"ClassVectors({counted(self.num_classes, 'class')}{marked}, width {self.embed_dim}, "
            f"logit scale {self.logit_scale:.6g}{bias})"
        )


def write_class_vectors(group: zarr.Group, vectors: ClassVectors, origin: Json) -> list[str]:
    """Write the arrays `class_vectors`, `class_names` and (if any) `class_bias`, `class_is_base`. Returns their paths.

    `origin` describes where they come from (teacher, templates); it is kept in the array's attributes.
    """
    codec = [ZstdCodec(level=3), Crc32cCodec()]
    count, channels = vectors.vectors_CD.shape
    array = group.create_array(
        "class_vectors",
        shape=(count, channels),
        chunks=(count, channels),
        dtype="float32",
        dimension_names=("class", "channel"),
        compressors=codec,
        overwrite=True,
        attributes={
            "logit_scale": vectors.logit_scale,
            "normalized": vectors.normalized,
            "has_bias": vectors.bias_C is not None,
            "has_base": vectors.base_C is not None,
            "digest": vectors.digest,
            "origin": origin,
        },
    )
    array[:] = vectors.vectors_CD
    names = group.create_array(
        "class_names",
        shape=(count,),
        chunks=(count,),
        dtype="string",
        dimension_names=("class",),
        compressors=codec,
        overwrite=True,
    )
    names[:] = np.array(vectors.names, dtype=object)
    written = ["class_vectors", "class_names"]
    if vectors.base_C is not None:
        marks = group.create_array(
            "class_is_base",
            shape=(count,),
            chunks=(count,),
            dtype="bool",
            dimension_names=("class",),
            compressors=codec,
            overwrite=True,
        )
        marks[:] = vectors.base_C
        written.append("class_is_base")
    if vectors.bias_C is not None:
        bias = group.create_array(
            "class_bias",
            shape=(count,),
            chunks=(count,),
            dtype="float32",
            dimension_names=("class",),
            compressors=codec,
            overwrite=True,
        )
        bias[:] = vectors.bias_C
        written.append("class_bias")
    return written


@dataclass(frozen=True, kw_only=True)
class OriginModel:
    """The teacher that class vectors come from, as far as others compare it."""

    model: str
    weights_digest: str


def read_class_vectors(group: zarr.Group, where: object) -> ClassVectors:
    """The store's class vectors.

    Raises:
        IncompleteError: the store has none yet.
        DamagedError: they cannot be read, or their digest is not the recorded one.
    """
    with readable(_UNREADABLE, code="vectors-damaged", where=where, hint=_AGAIN):
        array, about = _described(group, where)
        vectors = ClassVectors(
            names=tuple(str(name) for name in group["class_names"][:]),  # type: ignore[index,union-attr]
            vectors_CD=np.asarray(array[:], np.float32),
            bias_C=np.asarray(group["class_bias"][:], np.float32) if about.has_bias else None,  # type: ignore[index]
            logit_scale=about.logit_scale,
            normalized=about.normalized,
            base_C=np.asarray(group["class_is_base"][:], np.bool_) if about.has_base else None,  # type: ignore[index]
        )
        found = vectors.digest
    if found != about.digest:
        raise DamagedError(
            "class vectors changed since they were written",
            code="vectors-changed",
            where=where,
            expected=about.digest,
            found=found,
            hint=_AGAIN,
        )
    vectors.check(where)
    return vectors


def read_origin(group: zarr.Group, where: object) -> Json:
    """Where the class vectors come from, as `write_class_vectors` recorded it.

    Raises:
        IncompleteError, DamagedError: as `read_class_vectors`.
    """
    with readable(_UNREADABLE, code="vectors-damaged", where=where, hint=_AGAIN):
        return _described(group, where)[1].origin


def origin_model(group: zarr.Group, where: object) -> OriginModel:
    """The teacher that the class vectors come from.

    Raises:
        IncompleteError, DamagedError: as `read_class_vectors`; or no teacher is recorded.
    """
    origin = as_schema(
        read_origin(group, where),
        _Origin,
        what=_NO_TEACHER,
        code="vectors-teacher-unknown",
        where=where,
        hint=_AGAIN,
    )
    return origin.teacher


_AGAIN = "restore them from a copy, or run `teachonce vectors` into a new store"
_UNREADABLE = "class vectors cannot be read"
_NO_TEACHER = "class vectors that do not say which teacher they are from"


@dataclass(frozen=True, kw_only=True)
class _Attributes:
    """What lies beside the vectors, in the array's attributes."""

    logit_scale: float
    normalized: bool
    has_bias: bool
    digest: str
    origin: Any
    has_base: bool = False


@dataclass(frozen=True, kw_only=True)
class _Origin:
    teacher: OriginModel


def _described(group: zarr.Group, where: object) -> tuple[Any, _Attributes]:
    if "class_vectors" not in group or "class_names" not in group:
        raise IncompleteError(
            "the store has no class vectors",
            code="vectors-missing",
            where=where,
            hint=f"teachonce vectors --teacher … --out {typed(where)}",
        )
    array: Any = group["class_vectors"]
    return array, as_schema(
        array.attrs.asdict(),
        _Attributes,
        what="not class vectors",
        code="vectors-malformed",
        where=where,
        hint=_AGAIN,
    )
