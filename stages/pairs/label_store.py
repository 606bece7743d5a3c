"""Owns opening a label store for reading: generations that are finished, whose chunks are compared with their receipts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from ...pipeline.contents import Kind, how_to_make, kind_of
from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError, IncompleteError, InputError, MismatchError
from ...storage_schemas.label_store import GenerationAbout, LabelSpec, array_name, read_about, read_labels, read_spec
from ...storage_schemas.receipt import Output, Receipt
from ...storage_schemas.verified_store import VerifiedStore

#: The stage that makes labels; a later generation's ledger is `labels.N`.
LABELS, UNIT = "labels", "labels"


def ledger_name(generation: int) -> str:
    """The name of the ledger of a generation."""
    return LABELS if generation == 0 else f"{LABELS}.{generation}"


def open_label_root(location: Location, *, mode: Literal["r", "a"] = "r") -> zarr.Group:
    """The root group, as it lies there."""
    return zarr.open_group(location.zarr_store(read_only=mode == "r"), mode=mode, zarr_format=3)


@dataclass(frozen=True)
class _Receipts:
    """What `VerifiedStore` asks: a chunk holds the rows of a shard, and one receipt names all of them."""

    where: Location
    by_path: Mapping[str, Output]

    def shard_of(self, array: str, chunk: int) -> int:
        return chunk

    def outputs(self, shard: int) -> Mapping[str, Output]:
        return self.by_path

    def damaged(self, path: str, shard: int, found: str) -> DamagedError:
        output = self.by_path.get(path)
        return DamagedError(
            "labels are not those that `teachonce labels` wrote",
            code="labels-damaged",
            where=self.where / path,
            expected="none" if output is None else f"sha256 {output.sha256}",
            found=found,
            hint="restore them from a copy, or make them again with another --out",
        )


@dataclass(frozen=True, kw_only=True)
class OpenLabels:
    """A generation of labels. Picklable: each process opens the arrays for itself.

    Attributes:
        location: of the label store.
        generation: its number.
        receipt: what vouches for it.
    """

    location: Location
    spec: LabelSpec
    generation: int
    about: GenerationAbout
    receipt: Receipt

    @staticmethod
    def of(location: Location, generation: int | None = None) -> OpenLabels:
        """
        Args:
            generation: its number; None for the last that is finished.

        Raises:
            InputError: no label store, or no such generation.
            IncompleteError: it is not finished.
            DamagedError: descriptions or receipts are damaged.
        """
        if not (location / "zarr.json").exists():
            raise InputError(
                "no labels here",
                code="labels-missing-here",
                where=location,
                expected=Kind.LABELS,
                found=kind_of(location),
                hint=how_to_make(location, "teachonce labels STORE --classes N"),
            )
        root = open_label_root(location)
        spec = read_spec(root, location)
        done = _done(location)
        number = max(done, default=0) if generation is None else generation
        if number not in done:
            _refuse(location, number, done)
        return OpenLabels(
            location=location,
            spec=spec,
            generation=number,
            about=read_about(root, number, location),
            receipt=done[number],
        )

    @property
    def digest(self) -> str:
        """Of its labels, as the receipt has it."""
        return self.receipt.digest

    def check(self, other: LabelSpec, whose: str) -> None:
        """Refuse labels that are of something else.

        Args:
            other: what they must be of.
            whose: that is, for errors.

        Raises:
            MismatchError: names the field.
        """
        for field in ("corpus_id", "num_rows", "shard_size"):
            if getattr(other, field) != getattr(self.spec, field):
                raise MismatchError(
                    "the labels are of another corpus",
                    code="labels-other-corpus",
                    where=f"{self.location}: field '{field}'",
                    expected=f"{getattr(other, field)} ({whose})",
                    found=f"{getattr(self.spec, field)} (the labels)",
                    hint="give the labels that were made from this store",
                )
        if other.vocabulary != self.spec.vocabulary:
            raise MismatchError(
                "the labels are places in another vocabulary",
                code="labels-other-vocabulary",
                where=f"{self.location}: field 'vocabulary'",
                expected=f"{other.vocabulary} ({whose})",
                found=f"{self.spec.vocabulary} (the labels)",
                hint="give the store, or --vectors, that the labels were made with",
            )

    def open(self) -> zarr.Group:
        """The root group; every chunk of the labels is compared with the receipt."""
        plain = self.location.zarr_store(read_only=True)
        outputs = {output.path: output for output in self.receipt.outputs}
        return zarr.open_group(VerifiedStore(plain, _Receipts(self.location, outputs)), mode="r", zarr_format=3)

    def read(self, root: Any, rows: slice) -> NDArray[np.int32]:
        """Labels of rows of one shard, int32 (sample,).

        Raises:
            DamagedError: a chunk is not the one that was written.
        """
        where = f"{self.location / array_name(self.generation)}, rows {rows.start} to {rows.stop - 1}"
        return read_labels(root, self.generation, rows, where)

    def all_rows(self) -> NDArray[np.int32]:
        """Labels of all rows, int32 (sample,)."""
        return self.read(self.open(), slice(0, self.spec.num_rows))


def _done(location: Location) -> dict[int, Receipt]:
    """The receipts of finished generations."""
    found: dict[int, Receipt] = {}
    number = 0
    while (ledger := Ledger(location, ledger_name(number))).plan() is not None:
        if (receipt := ledger.receipt(UNIT)) is not None:
            found[number] = receipt
        number += 1
    return found


def _refuse(location: Location, number: int, done: Mapping[int, Receipt]) -> None:
    if Ledger(location, ledger_name(number)).plan() is not None:
        raise IncompleteError(
            "these labels are not finished",
            code="labels-unfinished",
            where=f"{location}, generation {number}",
            hint="run the same `teachonce labels` command again",
        )
    raise InputError(
        "no such generation of labels",
        code="labels-no-generation",
        where=location,
        expected=", ".join(map(str, done)) or "none",
        found=number,
        hint="leave out the number for the last one",
    )
