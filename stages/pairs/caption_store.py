"""Owns opening a caption store for reading: a finished one, whose chunks are compared with the receipts of its shards."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store

from ...pipeline.contents import Kind, how_to_make, kind_of
from ...pipeline.ledger import Ledger, Plan
from ...pipeline.storage import Copies, Location
from ...storage_schemas.caption_store import CaptionSpec, read_caption_spec, read_captions
from ...storage_schemas.errors import DamagedError, InputError
from ...storage_schemas.receipt import Output
from ...storage_schemas.samples import shard_name
from ...storage_schemas.verified_store import VerifiedStore
from ...storage_schemas.zarr_damage import readable
from .receipts import keep_receipt

#: The stage that makes captions.
CAPTIONS = "captions"

#: The texts, below the store.
TEXTS_FILE = "texts/captions.parquet"


def open_caption_root(location: Location, *, mode: Literal["r", "a"] = "r") -> zarr.Group:
    """The root group, as it lies there.

    Raises:
        DamagedError: its zarr.json is lost or cannot be read.
    """
    return open_captions(location.zarr_store(read_only=mode == "r"), location, mode)


def open_captions(store: Store, location: Location, mode: Literal["r", "a"] = "r") -> zarr.Group:
    """The root group as `store` gives it; `location` names it in errors, which are those of `open_caption_root`."""
    hint = "restore zarr.json from a copy"
    with readable("the captions' zarr.json cannot be read", code="captions-damaged", where=location, hint=hint):
        return zarr.open_group(store, mode=mode, zarr_format=3)


@dataclass(frozen=True)
class CaptionReceipts:
    """What `VerifiedStore` asks: a chunk holds the rows of a shard, as its receipt has them.

    Attributes:
        where: the captions.
        copies: where receipts are kept on this machine as they are read; `where` is then read by way of them.
    """

    where: Location
    copies: Copies | None = None

    def shard_of(self, array: str, chunk: int) -> int:
        return chunk

    def outputs(self, shard: int) -> Mapping[str, Output]:
        ledger = Ledger(self.where, CAPTIONS)
        if self.copies is not None:
            with contextlib.suppress(FileNotFoundError):
                keep_receipt(ledger, shard, self.copies)
        receipt = ledger.receipt(shard_name(shard), self._plan)
        return {} if receipt is None else {output.path: output for output in receipt.outputs}

    @cached_property
    def _plan(self) -> Plan | None:
        """It does not change once it is there."""
        return Ledger(self.where, CAPTIONS).plan()

    def damaged(self, path: str, shard: int, found: str) -> DamagedError:
        output = self.outputs(shard).get(path)
        return DamagedError(
            "captions are not those that `teachonce captions` wrote",
            code="captions-damaged",
            where=self.where / path,
            expected="none" if output is None else f"sha256 {output.sha256}",
            found=found,
            hint=f"restore them from a copy, or {Ledger(self.where, CAPTIONS).redo_hint(shard_name(shard))}",
        )


@dataclass(frozen=True, kw_only=True)
class OpenCaptions:
    """Captions of a corpus. Picklable: each process opens the arrays for itself.

    Attributes:
        location: of the store.
        spec: what is in it.
        fingerprint: digest of everything that decided its bytes.
        copies: what it is read by way of, on this machine; None for as it lies there.
    """

    location: Location
    spec: CaptionSpec
    fingerprint: str
    copies: Copies | None = None

    @staticmethod
    def of(location: Location) -> OpenCaptions:
        """
        Raises:
            InputError: no captions here.
            IncompleteError: `teachonce captions` has not finished.
            DamagedError, MismatchError: see `read_caption_spec`.
        """
        if not (location / "zarr.json").exists() or kind_of(location) != Kind.CAPTIONS:
            raise InputError(
                "no captions here",
                code="captions-missing",
                where=location,
                expected=Kind.CAPTIONS,
                found=kind_of(location),
                hint=how_to_make(location, "teachonce captions SHARDS --from TABLE --teacher …"),
            )
        plan = Ledger(location, CAPTIONS).require_complete("run the same `teachonce captions` command again")
        spec = read_caption_spec(open_caption_root(location), location)
        return OpenCaptions(location=location, spec=spec, fingerprint=plan.fingerprint.digest)

    def open(self) -> zarr.Group:
        """The root group; every chunk is compared with its shard's receipt."""
        plain = self.location.zarr_store(read_only=True)
        return open_captions(VerifiedStore(plain, self.receipts), self.location)

    @property
    def receipts(self) -> CaptionReceipts:
        return CaptionReceipts(self.location, self.copies)

    def kept_in(self, copies: Copies) -> OpenCaptions:
        """The same, read by way of copies."""
        return replace(self, location=self.location.copied(copies), copies=copies)

    def read(self, root: Any, shard: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See `read_captions`."""
        return read_captions(root, self.spec, shard, f"{self.location}, shard {shard}")
