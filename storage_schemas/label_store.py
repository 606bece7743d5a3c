"""Owns the label store: a small Zarr group with a label for each row of a corpus, as often as they were made anew (generations)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from .fingerprint import Json
from .formats import LABELS
from .json_file import Count, Positive, Schema, as_sealed, seal
from .row_array import RowArray
from .zarr_damage import readable
from .zarr_kind import check_kind, describe

#: Attributes of the root group, and of the array of a generation.
ATTRIBUTE, GENERATION = "labels", "generation"

#: The label of a row that has none: its image cannot be used, or it is nobody's.
NO_LABEL = -1

_HINT = "restore the labels from a copy, or make them again with another --out"


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """What labels are of.

    Attributes:
        corpus_id: of the samples.
        num_rows, shard_size: of the target store that they were made from; row as there.
        vocabulary: digest of the class vectors whose names the labels are places of.
        num_names: names there.
    """

    corpus_id: str
    num_rows: Positive
    shard_size: Positive
    vocabulary: str
    num_names: Positive


@dataclass(frozen=True, kw_only=True)
class GenerationAbout:
    """What is kept beside the labels of a generation.

    Attributes:
        names: of those that rows have: place in the vocabulary, name, number of rows; by their places.
        origin: what they were made from and how, for people.
    """

    names: Sequence[tuple[Count, str, Positive]]
    origin: Json


def array_name(generation: int) -> str:
    """The array of a generation."""
    return f"generation_{generation}"


def create_label_store(root: zarr.Group, spec: LabelSpec) -> None:
    """Describe an empty group. Written before any labels."""
    # Zarr's listing warns of files that are no nodes: those that are not Zarr's lie in groups without any.
    for name in ("ledger", "prompts"):
        root.require_group(name)
    describe(root, LABELS, ATTRIBUTE, spec)


def read_spec(root: zarr.Group, where: object) -> LabelSpec:
    """
    Raises:
        MismatchError: no labels, or those of a later version.
        DamagedError: the description cannot be read, or changed since.
    """
    check_kind(root, LABELS, what="these are no labels", code="labels-other-kind", where=where, hint=_HINT)
    fields = root.attrs.asdict().get(ATTRIBUTE)
    return _read(fields, LabelSpec, f"{where}: attribute '{ATTRIBUTE}'")


def read_about(root: zarr.Group, generation: int, where: object) -> GenerationAbout:
    """
    Raises:
        DamagedError: the description cannot be read, or changed since.
    """
    with readable("labels cannot be read", code="labels-damaged", where=where, hint=_HINT):
        fields = root[array_name(generation)].attrs.asdict().get(GENERATION)
    return _read(fields, GenerationAbout, f"{where}, generation {generation}")


def write_generation(
    root: zarr.Group, spec: LabelSpec, generation: int, labels_R: NDArray[np.int32], about: GenerationAbout
) -> list[str]:
    """Write the labels of all rows, int32 (sample,). Returns the paths of the files."""
    name = array_name(generation)
    array = RowArray(
        name=name,
        shape=(spec.num_rows,),
        chunks=(spec.shard_size,),
        dtype="int32",
        axes=("sample",),
        fill=NO_LABEL,
        attributes={GENERATION: seal({"names": [list(one) for one in about.names], "origin": about.origin})},
    ).create(root)
    array[:] = labels_R
    return [f"{name}/zarr.json", *(f"{name}/c/{chunk}" for chunk in range(-(-spec.num_rows // spec.shard_size)))]


def read_labels(root: Any, generation: int, rows: slice, where: object) -> NDArray[np.int32]:
    """Labels of some rows of one shard, int32 (sample,); `NO_LABEL` where there is none.

    Raises:
        DamagedError: a chunk is not the one that was written.
    """
    with readable("labels cannot be read", code="labels-damaged", where=where, hint=_HINT):
        return np.asarray(root[array_name(generation)][rows], np.int32)


def labels_digest(labels_R: NDArray[np.int32]) -> str:
    """blake2b-128 (hexadecimal) of labels, little-endian."""
    return hashlib.blake2b(np.ascontiguousarray(labels_R, "<i4").tobytes(), digest_size=16).hexdigest()


def _read(fields: Any, schema: type[Schema], where: object) -> Schema:
    what = "not a description of labels"
    return as_sealed(fields, schema, what=what, code="labels-damaged", where=where, hint=_HINT)
