"""Owns the full check of one shard's chunks in the store: each file is read once, compared with its receipt, and decoded from memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.receipt import Output, Receipt
from ...storage_schemas.samples import shard_name
from .flipped_bit import CRC32C, checksum, find_flipped_bit
from .receipts import other_files
from .vouched_file import VouchedFile

#: Bytes of the checksum that Zarr's codec `crc32c` puts behind every chunk of rows.
_CHECKSUM_BYTES = 4


@dataclass
class ChunksRead:
    """What was found in a shard's chunks.

    Attributes:
        damage: of files, in their order.
        num_bytes: that were read.
    """

    damage: list[DamagedError] = field(default_factory=list)
    num_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class ChunkCheck:
    """The chunk files that a shard's receipts name.

    Attributes:
        ledgers: that have receipts of the shard, the oldest first.
        receipt: the newest one.
        outputs: the files, by path as readers of the store's generation get them; where they lie is in the output.
        hint: what to do about a file that is wrong.
    """

    store: Location
    ledgers: Sequence[Ledger]
    receipt: Receipt
    outputs: Mapping[str, Output]
    hint: str

    def read(self, paths: Sequence[str], found: ChunksRead) -> Mapping[str, bytes]:
        """The bytes of some of them; what is wrong is noted in `found`, and left out."""
        right: dict[str, bytes] = {}
        for path in paths:
            output = self.outputs[path]
            try:
                data: bytes | None = (self.store / output.path).read_bytes()
            except FileNotFoundError:
                data = None
            found.num_bytes += len(data or b"")
            sha256 = hashlib.sha256(data or b"").hexdigest()
            if data is not None and (len(data), sha256) == (output.bytes, output.sha256):
                right[path] = data
            else:
                found.damage.append(self._error(path, output, data, sha256))
        return right

    def _error(self, path: str, output: Output, data: bytes | None, sha256: str) -> DamagedError:
        file = _file(path, self.store / output.path, output, self.hint)
        others: dict[str, str] = {}
        if data:
            for ledger in self.ledgers:
                others |= other_files(ledger, int(self.receipt.key), f"{output.path.partition('/c/')[0]}/")
        error = file.error(
            found_bytes=None if data is None else len(data),
            found_sha256=sha256,
            others=others,
            flipped="" if data is None or len(data) != output.bytes else flipped_text(data),
        )
        assert error is not None
        return error

    def is_stale(self, found: ChunksRead) -> bool:
        """Whether every file is another than the receipt's, and whole: then it is the receipt that is old."""
        if len(found.damage) != len(self.outputs):
            return False
        return all(_is_whole(data) for data in self._present())

    def _present(self) -> Iterator[bytes]:
        for output in self.outputs.values():
            try:
                yield (self.store / output.path).read_bytes()
            except FileNotFoundError:
                yield b""

    def stale_error(self) -> DamagedError:
        return DamagedError(
            "a stale receipt: every chunk of its shard is whole, and none is the one that it vouches for",
            code="receipt-stale",
            where=self.ledgers[-1].folder / "receipts" / f"{shard_name(int(self.receipt.key))}.json",
            hint=self.hint,
        )


def wrong_sizes(store: Location, outputs: Mapping[str, Output], hint: str) -> Iterator[DamagedError]:
    """Chunk files that are missing or of another size, by a look at their names alone.

    Args:
        outputs: the files, as in `ChunkCheck`.
    """
    for path, output in outputs.items():
        error = _file(path, store / output.path, output, hint).size_error()
        if error is not None:
            yield error


def _file(path: str, place: Location, output: Output, hint: str) -> VouchedFile:
    return VouchedFile(noun=f"chunk of '{path.partition('/')[0]}'", place=place, output=output, hint=hint)


def flipped_text(chunk: bytes) -> str:
    """Which single bit of a chunk was flipped, as text; '' where its checksum is right, or more than one was."""
    content, recorded = chunk[:-_CHECKSUM_BYTES], int.from_bytes(chunk[-_CHECKSUM_BYTES:], "little")
    syndrome = checksum(content, CRC32C) ^ recorded
    if syndrome == 0:
        return ""
    if syndrome & (syndrome - 1) == 0:
        bit = syndrome.bit_length() - 1
        return f"bit {bit % 8} of byte {len(content) + bit // 8}, in the checksum"
    place = find_flipped_bit(len(content), syndrome, CRC32C)
    return "" if place is None else f"bit {place.bit} of byte {place.byte}"


def _is_whole(chunk: bytes) -> bool:
    return len(chunk) > _CHECKSUM_BYTES and checksum(chunk[:-_CHECKSUM_BYTES], CRC32C) == int.from_bytes(
        chunk[-_CHECKSUM_BYTES:], "little"
    )
