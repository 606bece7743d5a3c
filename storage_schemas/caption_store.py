"""Owns the caption store: a small Zarr group with a teacher's embeddings of the captions of each row of a corpus, and its receipts' digest."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from .errors import DamagedError
from .fingerprint import Json
from .formats import CAPTIONS
from .json_file import Count, Positive, as_sealed
from .row_array import RowArray
from .zarr_damage import readable
from .zarr_kind import check_kind, describe

#: The attribute of the root group that describes it, and its arrays.
ATTRIBUTE, EMBEDDING, COUNT = "captions", "embedding", "count"

#: Types of the stored embeddings, by the names that users know.
DTYPES = {"fp16": "float16", "fp32": "float32"}

_HINT = "restore the captions from a copy, or make them again with another --out"


@dataclass(frozen=True, kw_only=True)
class CaptionCounts:
    """What became of the entries of the tables.

    Attributes:
        samples: of the corpus that have a caption; `without`: that have none.
        captions: that were embedded.
        beyond: that were left out, since a sample had more than `CaptionSpec.captions`.
        unknown: whose path is none of the corpus.
        blank: without text.
    """

    samples: Count
    without: Count
    captions: Count
    beyond: Count = 0
    unknown: Count = 0
    blank: Count = 0


@dataclass(frozen=True, kw_only=True)
class CaptionSpec:
    """What the embeddings are of.

    Attributes:
        corpus_id: of the samples.
        num_rows, shard_size: row = shard * shard_size + offset, as in target stores of this corpus.
        captions: places of a row; the first `count` of them are taken.
        embed_dim: channels.
        encoding: a name in `DTYPES`.
        texts: blake2b-128 (hexadecimal) over rows and texts.
        logit_scale: the teacher's factor from cosines to logits.
        teacher: its identity; `weights_digest` and `embed_dim` among it.
        tokenizer: its context length, and a digest of what it makes of some texts.
        counts: what became of the entries of the tables.
    """

    corpus_id: str
    num_rows: Positive
    shard_size: Positive
    captions: Positive
    embed_dim: Positive
    encoding: Literal["fp16", "fp32"]
    texts: str
    logit_scale: float
    teacher: dict[str, Any]
    tokenizer: dict[str, Any]
    counts: CaptionCounts

    def rows(self, shard: int) -> slice:
        """Rows of the chunk that a shard has, whether there are samples or not."""
        start = shard * self.shard_size
        return slice(start, min(start + self.shard_size, self.num_rows))


def create_caption_store(root: zarr.Group, spec: CaptionSpec) -> None:
    """Describe an empty group and make its arrays. Written before any rows."""
    root.require_group("ledger")  # Zarr's listing warns of files that are no nodes
    root.require_group("texts")
    rows, shard = spec.num_rows, spec.shard_size
    RowArray(
        name=EMBEDDING,
        shape=(rows, spec.captions, spec.embed_dim),
        chunks=(shard, 1, spec.embed_dim),
        dtype=DTYPES[spec.encoding],
        axes=("sample", "caption", "channel"),
        fill=np.nan,
    ).create(root)
    RowArray(name=COUNT, shape=(rows,), chunks=(shard,), dtype="int32", axes=("sample",), fill=0).create(root)
    describe(root, CAPTIONS, ATTRIBUTE, spec)


def read_caption_spec(root: zarr.Group, where: object) -> CaptionSpec:
    """
    Raises:
        MismatchError: no captions, or those of a later version.
        DamagedError: the description cannot be read, or changed since.
    """
    check_kind(root, CAPTIONS, what="these are no captions", code="captions-other-kind", where=where, hint=_HINT)
    return as_sealed(
        root.attrs.asdict().get(ATTRIBUTE),
        CaptionSpec,
        what="not a description of captions",
        code="captions-damaged",
        where=f"{where}: attribute '{ATTRIBUTE}'",
        hint=_HINT,
    )


def write_captions(
    root: zarr.Group, spec: CaptionSpec, shard: int, embedding_NKD: NDArray[np.float32], count_N: NDArray[np.int32]
) -> tuple[list[str], str]:
    """Write the rows of a shard; what is behind a row's count becomes NaN.

    Args:
        embedding_NKD: fp32 (sample, caption, channel), at length 1.
        count_N: captions of each sample, int32.

    Returns:
        The paths of the files, and the digest (blake2b-128, hexadecimal) of what was written.
    """
    here = spec.rows(shard)
    rows = here.stop - here.start
    whole_RKD = np.full((rows, spec.captions, spec.embed_dim), np.nan, DTYPES[spec.encoding])
    whole_R = np.zeros(rows, np.int32)
    taken_NK = np.arange(spec.captions) < count_N[:, None]
    whole_RKD[: len(count_N)][taken_NK] = embedding_NKD[taken_NK]
    whole_R[: len(count_N)] = count_N
    for name, values in ((EMBEDDING, whole_RKD), (COUNT, whole_R)):
        array: Any = root[name]
        array.with_config({"write_empty_chunks": True})[here] = values  # it is no part of what an array keeps
    return caption_chunks(spec, shard), captions_digest(whole_RKD, whole_R)


def caption_chunks(spec: CaptionSpec, shard: int) -> list[str]:
    """The paths of the files that hold a shard's rows."""
    return [*(f"{EMBEDDING}/c/{shard}/{place}/0" for place in range(spec.captions)), f"{COUNT}/c/{shard}"]


def captions_digest(embedding_RKD: NDArray[np.floating[Any]], count_R: NDArray[np.int32]) -> str:
    """blake2b-128 (hexadecimal) of the rows of a shard's chunk as they are stored; it stands in the shard's receipt."""
    digest = hashlib.blake2b(count_R.astype("<i4").tobytes(), digest_size=16)
    digest.update(embedding_RKD.astype(embedding_RKD.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def check_caption_arrays(root: zarr.Group, spec: CaptionSpec, where: object) -> None:
    """
    Raises:
        DamagedError: an array is missing, or is of another shape, type or chunk than its description has it.
    """
    expected = {
        EMBEDDING: ((spec.num_rows, spec.captions, spec.embed_dim), DTYPES[spec.encoding], spec.shard_size),
        COUNT: ((spec.num_rows,), "int32", spec.shard_size),
    }
    with readable("captions cannot be read", code="captions-damaged", where=where, hint=_HINT):
        arrays: dict[str, Any] = {name: root[name] for name in expected}
        found = {name: (array.shape, str(array.dtype), array.chunks[0]) for name, array in arrays.items()}
    for name, facts in expected.items():
        if found[name] != facts:
            raise DamagedError(
                "an array of captions is not as their description has it",
                code="captions-damaged",
                where=f"{where}/{name}/zarr.json",
                expected=_array_text(*facts),
                found=_array_text(*found[name]),
                hint=_HINT,
            )


def _array_text(shape: tuple[int, ...], dtype: str, rows: int) -> str:
    return f"{dtype} {shape}, chunks of {rows} rows"


def stored_captions(
    root: Any, spec: CaptionSpec, shard: int, where: object
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int32]]:
    """All rows of a shard's chunk in the types that they are stored in; see `read_captions`."""
    with readable("captions cannot be read", code="captions-damaged", where=where, hint=_HINT):
        here = spec.rows(shard)
        return np.asarray(root[EMBEDDING][here]), np.asarray(root[COUNT][here])


def read_captions(
    root: Any, spec: CaptionSpec, shard: int, where: object
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All rows of a shard's chunk: embeddings, fp32 (sample, caption, channel), NaN behind a row's count; and counts, int64 (sample,).

    Raises:
        DamagedError: a chunk is not the one that was written.
    """
    embedding_RKD, count_R = stored_captions(root, spec, shard, where)
    return embedding_RKD.astype(np.float32), count_R.astype(np.int64)


def identity_of(spec: CaptionSpec) -> Json:
    """What of it enters the fingerprint of what makes it, beside how it is computed."""
    fields = asdict(spec)
    teacher = {name: spec.teacher[name] for name in ("model", "architecture", "weights_digest")}
    return {**{name: fields[name] for name in fields if name not in ("counts", "teacher")}, "teacher": teacher}
