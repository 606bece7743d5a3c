"""Owns reading shards: images by row through the offset index, each checked against its key and checksum."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...pipeline.contents import Kind, how_to_shard, kind_of
from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError, InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.manifest import Corpus, ManifestReader
from ...storage_schemas.plain_text import typed
from ...storage_schemas.receipt import Receipt
from ...storage_schemas.samples import TAR_BLOCK, member_key, shard_name
from ...storage_schemas.tar_index import decode_index
from .manifest_file import open_manifest


@dataclass(frozen=True)
class ShardSet:
    """A folder that `teachonce shard` finished."""

    location: Location

    @staticmethod
    def open(location: Location | Path | str) -> ShardSet:
        """Open finished shards.

        Raises:
            InputError: no shards there.
            IncompleteError: `teachonce shard` has not finished.
        """
        shards = ShardSet(Location.of(location))
        if not (shards.location / "corpus.json").exists():
            raise InputError(
                "no shards here",
                code="shards-missing",
                where=shards.location,
                expected=Kind.SHARDS,
                found=kind_of(shards.location),
                hint=how_to_shard(shards.location),
            )
        shards.ledger.require_complete(hint="run the same `teachonce shard` command again")
        return shards

    @cached_property
    def corpus(self) -> Corpus:
        location = self.location / "corpus.json"
        return Corpus.from_bytes(location.read_bytes(), where=location)

    @cached_property
    def reduced(self) -> dict[str, Json]:
        """How images were reduced: `resize` and the version of `pillow`; empty where they are the original files."""
        plan = self.ledger.plan()
        fields = {} if plan is None else plan.fingerprint.fields
        return {name: fields[name] for name in ("resize", "pillow") if name in fields}

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.location, "shard")

    def manifest(self) -> ManifestReader:
        return open_manifest(self.location, self.corpus)

    def receipt(self, shard: int) -> Receipt:
        """The receipt of one shard.

        Raises:
            DamagedError: it is not there.
        """
        receipt = self.ledger.receipt(shard_name(shard))
        if receipt is None:
            raise DamagedError(
                "a shard has no receipt",
                code="shard-receipt-missing",
                where=f"{self.location}, shard {shard}",
                hint="run `teachonce shard` again",
            )
        return receipt

    def reader(self, shard: int) -> ShardReader:
        return ShardReader(self, shard)


class ShardReader:
    """One tar, held open. Length and index are checked against the receipt on open; each image on read.

    Attributes:
        index: records (key, row, offset, length, crc32) of the usable images, in row order.
        invalid: reasons by row of the samples that have no usable image.

    Raises:
        DamagedError: tar or index is missing, cut, or not the one that the receipt vouches for.
    """

    def __init__(self, shards: ShardSet, shard: int) -> None:
        self._tar = shards.location / f"{shard_name(shard)}.tar"
        self._redo = shards.ledger.redo_hint(shard_name(shard))
        receipt = shards.receipt(shard)
        for output in receipt.outputs:
            found = (shards.location / output.path).size()
            if found != output.bytes:
                raise DamagedError(
                    "a shard's file was cut or replaced",
                    code="shard-file-changed",
                    where=shards.location / output.path,
                    expected=f"{output.bytes} bytes",
                    found="no file" if found is None else f"{found} bytes",
                    hint=f"run the same `teachonce shard … --out {typed(shards.location)}` again",
                )
        index_location = shards.location / f"{shard_name(shard)}.index.npy"
        index = index_location.read_bytes()
        recorded = next((o.sha256 for o in receipt.outputs if o.path == index_location.name), "none")
        if (sha256 := hashlib.sha256(index).hexdigest()) != recorded:
            raise DamagedError(
                "an offset index changed since it was written",
                code="index-changed",
                where=index_location,
                expected=f"sha256 {recorded}",
                found=sha256,
                hint=f"restore it from a copy, or {self._redo}",
            )
        self.index: NDArray[np.void] = decode_index(index, where=index_location)
        self.invalid = {bad.row: bad.reason for bad in receipt.invalid_rows}
        self._check_index(shards.corpus.shard_rows(shard), index_location)
        self._bytes = self._tar.open_ranges()
        self._position = {int(row): i for i, row in enumerate(self.index["row"])}

    def _check_index(self, rows: range, where: object) -> None:
        """Refuse an index of other rows than the shard's, or of bytes behind the end of its tar."""
        size = self._tar.size() or 0
        begin, length = self.index["offset"], self.index["length"]
        fits = (begin >= TAR_BLOCK) & (length >= 0) & (begin <= size) & (length <= size - begin)
        known = sorted([*self.index["row"].tolist(), *self.invalid])
        if known != list(rows) or not fits.all():
            raise DamagedError(
                "an index does not fit its receipt or its tar",
                code="index-does-not-fit",
                where=where,
                expected=f"rows {rows.start} to {rows.stop - 1}",
                found=f"{len(self.index)} images and {len(self.invalid)} without, {int((~fits).sum())} of them outside the tar",
                hint=f"restore it from a copy, or {self._redo}",
            )

    def key(self, row: int) -> str:
        """The key of a row that has an image."""
        return self.index["key"][self._position[row]].decode("ascii")  # type: ignore[no-any-return]

    def read(self, row: int) -> bytes:
        """The image bytes of a row.

        Raises:
            DamagedError: the member in the tar is another sample's, or its bytes changed, or it was cut meanwhile.
            Unreachable: the disk or the mount gives an error.
        """
        record = self.index[self._position[row]]
        offset, key = int(record["offset"]), record["key"].decode("ascii")
        length = int(record["length"])
        member = self._bytes.read(offset - TAR_BLOCK, TAR_BLOCK + length)
        if len(member) < TAR_BLOCK + length:
            raise DamagedError(
                "a shard's tar was cut while it was read",
                code="shard-tar-cut",
                where=f"{self._tar}, row {row}",
                expected=f"at least {offset + length} bytes",
                found=f"{offset - TAR_BLOCK + len(member)} bytes",
                hint="restore the tar, or run the same `teachonce shard` command again",
            )
        found = member_key(member[:TAR_BLOCK])
        if found != key:
            raise DamagedError(
                "tar and index are out of line",
                code="tar-index-out-of-line",
                where=f"{self._tar}, row {row}",
                expected=key,
                found=found or "no member header",
            )
        data = member[TAR_BLOCK:]
        if zlib.crc32(data) != int(record["crc32"]):
            raise DamagedError(
                "an image in a tar changed",
                code="image-in-tar-changed",
                where=f"{self._tar}, row {row}, {key}",
                hint=f"restore the tar, or {self._redo}",
            )
        return data

    def close(self) -> None:
        self._bytes.close()
