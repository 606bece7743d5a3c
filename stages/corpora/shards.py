"""Owns reading shards: images by row through the offset index, each checked against its key and checksum."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...pipeline.contents import Kind, how_to_shard, kind_of
from ...pipeline.ledger import Ledger, Plan, file_of
from ...pipeline.storage import Location, RangesInBlocks
from ...storage_schemas.corpus_history import changed_rows
from ...storage_schemas.errors import DamagedError, InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.manifest import Corpus, ManifestReader
from ...storage_schemas.plain_text import typed
from ...storage_schemas.receipt import Output, Receipt
from ...storage_schemas.samples import TAR_BLOCK, member_key, shard_name
from ...storage_schemas.tar_index import decode_index
from .generations import SHARD_FILES
from .manifest_file import CORPUS, open_manifest, read_corpus
from .tar_in_place import IN_PLACE_HINT, refuse_changed_tar


@dataclass(frozen=True)
class ShardSet:
    """A folder that `teachonce shard` finished.

    Attributes:
        corpus_id: a state of the corpus; None for the present one.
    """

    location: Location
    corpus_id: str | None = None

    @staticmethod
    def open(location: Location | Path | str) -> ShardSet:
        """Open finished shards.

        Raises:
            InputError: no shards there.
            IncompleteError: `teachonce shard` has not finished.
        """
        shards = ShardSet(Location.of(location))
        if not (shards.location / CORPUS).exists():
            raise InputError(
                "no shards here",
                code="shards-missing",
                where=shards.location,
                expected=Kind.SHARDS,
                found=kind_of(shards.location),
                hint=how_to_shard(shards.location),
            )
        for ledger in shards.ledgers:
            ledger.require_complete(hint=f"run the same `teachonce {ledger.command}` command again")
        return shards

    @cached_property
    def _present(self) -> Corpus:
        """The corpus as it is now: shards are read as they are, whatever the state."""
        return read_corpus(self.location)

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus, in the state that this set has it in.

        Raises:
            DamagedError: it cannot be read, or never was in this state.
        """
        corpus = self._present if self.corpus_id is None else self._present.as_of(self.corpus_id)
        if corpus is None:
            raise DamagedError(
                "the corpus was never in this state",
                code="corpus-state-unknown",
                where=self.location / CORPUS,
                expected=", ".join(state.corpus_id for state in self._present.states),
                found=self.corpus_id,
                hint="restore the shards from a copy",
            )
        return corpus

    def as_of(self, corpus_id: str) -> ShardSet | None:
        """The same shards, with the rows that the corpus had when it had this id; None where it never had it."""
        if corpus_id == self._present.corpus_id:
            return self if self.corpus_id is None else ShardSet(self.location)
        return None if self._present.as_of(corpus_id) is None else ShardSet(self.location, corpus_id)

    @cached_property
    def reduced(self) -> dict[str, Json]:
        """How images were reduced: `resize` and the version of `pillow`; empty where they are the original files."""
        plan = self.ledger.plan()
        fields = {} if plan is None else plan.fingerprint.fields
        return {name: fields[name] for name in ("resize", "pillow") if name in fields}

    def changed_since(self, until: str | None = None) -> tuple[set[int], set[int]]:
        """Rows that were mended behind this state, and those of them that had an image in it.

        Args:
            until: corpus id of the last state that counts; None for the present one.
        """
        states = self._present.states
        places = {state.corpus_id: place for place, state in enumerate(states, 1)}
        mended, replaced = changed_rows(states[places[self.corpus.corpus_id] : places.get(until or "")])
        here = self.corpus.layout.has_row
        return {row for row in mended if here(row)}, {row for row in replaced if here(row)}

    @property
    def ledger(self) -> Ledger:
        """The ledger of the shards that were there first."""
        return self.ledgers[0]

    @cached_property
    def ledgers(self) -> list[Ledger]:
        """A ledger for each state of the corpus, from the first to the present one."""
        names = [state.ledger(number) for number, state in enumerate(self._present.states, 1)]
        return [Ledger(self.location, name) for name in names]

    @cached_property
    def _plans(self) -> dict[str, Plan]:
        """By ledger. They do not change once they are there."""
        return {ledger.stage: plan for ledger in self.ledgers if (plan := ledger.plan()) is not None}

    def ledger_of(self, shard: int) -> Ledger:
        """The ledger of whatever wrote a shard last."""
        states = self._present.states
        first = next(i for i, state in enumerate(states) if shard < state.num_shards)
        mended = (i for i, shards in self._mended if shard in shards)
        return self.ledgers[next(mended, first)]

    @cached_property
    def _mended(self) -> list[tuple[int, set[int]]]:
        """Places of the states that mended rows, the last one first, each with the shards of these rows."""
        size = self._present.shard_size
        found = [(i, {row // size for row in state.mended}) for i, state in enumerate(self._present.states)]
        return [(i, shards) for i, shards in reversed(found) if shards]

    def manifest(self) -> ManifestReader:
        return open_manifest(self.location, self.corpus)

    def receipt(self, shard: int) -> Receipt:
        """The receipt of one shard.

        Raises:
            DamagedError: it is not there.
        """
        ledger = self.ledger_of(shard)
        receipt = ledger.receipt(shard_name(shard), self._plans.get(ledger.stage))
        if receipt is None:
            raise DamagedError(
                "a shard has no receipt",
                code="shard-receipt-missing",
                where=f"{self.location}, shard {shard}",
                hint="run `teachonce shard` again",
            )
        return receipt

    def file(self, shard: int, output: Output) -> Location:
        """Where a file of a shard lies that its receipt has: in this folder, or, of a tar that is used in place, anywhere.

        One that was mended last may still have the name that it waited under (see `generations`).
        """
        ledger = self.ledger_of(shard)
        if self._present.mended and ledger == self.ledgers[-1]:
            waiting = self.location / f"{output.path}.{ledger.generation}"
            if waiting.exists():
                return waiting
        return file_of(self.location, output)

    def redo_hint(self, shard: int, output: Output) -> str:
        """What to type where a file of a shard is not the one that its receipt has."""
        if output.place:
            return IN_PLACE_HINT
        return f"restore it from a copy, or {self.ledger_of(shard).redo_hint(shard_name(shard))}"

    def receipts(self) -> Iterator[Receipt]:
        """The receipts of all shards in their order, one at a time; those that are gone are left out."""
        readers = {ledger.stage: ledger.reader() for ledger in self.ledgers}
        for stage, shards in groupby(range(self.corpus.num_shards), key=lambda shard: self.ledger_of(shard).stage):
            yield from (receipt for receipt in readers[stage](map(shard_name, shards)) if receipt is not None)

    def reader(self, shard: int, *, in_order: bool = False) -> ShardReader:
        """A shard, open; `in_order` as in `ShardReader`."""
        return ShardReader(self, shard, in_order=in_order)


class ShardIndex:
    """The offset index of one tar, checked against the receipt. The tar itself may be gone.

    Args:
        receipt: the shard's, where it has been read already.

    Attributes:
        index: records (key, row, offset, length, crc32) of the usable images, in row order.
        invalid: reasons by row of the samples that have no usable image.

    Raises:
        DamagedError: the index is missing, or not the one that the receipt vouches for.
    """

    def __init__(self, shards: ShardSet, shard: int, receipt: Receipt | None = None) -> None:
        redo = shards.ledger_of(shard).redo_hint(shard_name(shard))
        receipt = receipt or shards.receipt(shard)
        self._tar, vouched = _files(receipt, shard)
        location = shards.file(shard, vouched)
        try:
            index = location.read_bytes()
        except FileNotFoundError:
            raise _changed_file(shards, vouched, None) from None
        if len(index) != vouched.bytes:
            raise _changed_file(shards, vouched, len(index))
        if (sha256 := hashlib.sha256(index).hexdigest()) != vouched.sha256:
            raise DamagedError(
                "an offset index changed since it was written",
                code="index-changed",
                where=location,
                expected=f"sha256 {vouched.sha256}",
                found=sha256,
                hint=f"restore it from a copy, or {redo}",
            )
        self.index: NDArray[np.void] = decode_index(index, where=location)
        self.invalid = {bad.row: bad.reason for bad in receipt.invalid_rows}
        self._check(shards.corpus.rows(shard), location, redo)

    def _check(self, rows: range, where: object, redo: str) -> None:
        """Refuse an index of other rows than the shard's, or of bytes behind the end of its tar."""
        size = self._tar.bytes
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
                hint=f"restore it from a copy, or {redo}",
            )


class ShardReader:
    """One tar, held open. Length and index are checked against the receipt on open; each image on read.

    Args:
        in_order: rows are read about in their order, so that of a tar that lies far away many come with one request.

    Attributes:
        index, invalid: as in `ShardIndex`.

    Raises:
        DamagedError: tar or index is missing, cut, or not the one that the receipt vouches for.
    """

    def __init__(self, shards: ShardSet, shard: int, *, in_order: bool = False) -> None:
        self._redo = shards.ledger_of(shard).redo_hint(shard_name(shard))
        receipt = shards.receipt(shard)
        self._vouched, _ = _files(receipt, shard)
        self._tar = shards.file(shard, self._vouched)
        found = self._tar.stat()
        if self._vouched.place:
            refuse_changed_tar(self._tar, found, size=self._vouched.bytes, version=self._vouched.version)
        elif found is None or found.size != self._vouched.bytes:
            raise _changed_file(shards, self._vouched, None if found is None else found.size)
        known = ShardIndex(shards, shard, receipt)
        self.index, self.invalid = known.index, known.invalid
        self._bytes = self._tar.open_ranges("" if found is None else found.version)
        if in_order and self._tar.local_path() is None:
            self._bytes = RangesInBlocks(self._bytes)
        self._position = {row: i for i, row in enumerate(self.index["row"].tolist())}

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
        # In a tar of somebody else's the name before an image says nothing of its key: the checksum tells alone.
        header = 0 if self._vouched.place else TAR_BLOCK
        member = self._bytes.read(offset - header, header + length)
        if len(member) < header + length:
            raise DamagedError(
                "a shard's tar was cut while it was read",
                code="shard-tar-cut",
                where=f"{self._tar}, row {row}",
                expected=f"at least {offset + length} bytes",
                found=f"{offset - header + len(member)} bytes",
                hint=IN_PLACE_HINT
                if self._vouched.place
                else "restore the tar, or run the same `teachonce shard` command again",
            )
        found = member_key(member[:header]) if header else key
        if found != key:
            raise DamagedError(
                "tar and index are out of line",
                code="tar-index-out-of-line",
                where=f"{self._tar}, row {row}",
                expected=key,
                found=found or "no member header",
            )
        data = member[header:]
        if zlib.crc32(data) != int(record["crc32"]):
            raise DamagedError(
                "an image in a tar changed",
                code="image-in-tar-changed",
                where=f"{self._tar}, row {row}, {key}",
                hint=IN_PLACE_HINT if self._vouched.place else f"restore the tar, or {self._redo}",
            )
        return data

    def close(self) -> None:
        self._bytes.close()


def _files(receipt: Receipt, shard: int) -> tuple[Output, Output]:
    """Tar and index, as the receipt vouches for them."""
    files = {output.path: output for output in receipt.outputs}
    tar, index = (files[f"{shard_name(shard)}{ending}"] for ending in SHARD_FILES)
    return tar, index


def _changed_file(shards: ShardSet, output: Output, found: int | None) -> DamagedError:
    return DamagedError(
        "a shard's file was cut or replaced",
        code="shard-file-changed",
        where=shards.location / output.path,
        expected=f"{output.bytes} bytes",
        found="no file" if found is None else f"{found} bytes",
        hint=f"run the same `teachonce shard … --out {typed(shards.location)}` again",
    )
