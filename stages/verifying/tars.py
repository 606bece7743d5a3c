"""Owns the full check of one shard's tar: every byte is read once, for the tar's sha256 and for what the manifest says of each image."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.manifest import Entry
from ...storage_schemas.samples import TAR_BLOCK, content_digest, sample_metadata
from ...storage_schemas.tar_file import member_header
from .flipped_bit import CRC32, find_flipped_bit

#: Bytes of a piece: whole samples, about so many.
_PIECE_BYTES = 1 << 20

#: Of so many images one has its digest computed again in a tar that is as its receipt has it. The others' stand in the tar, whose
#: every byte has been hashed, beside an image that has the checksum of the index.
_DIGEST_EVERY = 16

#: Faulty samples of a shard that are told of.
_MOST = 5


@dataclass
class TarRead:
    """What was found in a tar.

    Attributes:
        sha256: of all bytes.
        num_bytes: of the tar.
        flipped: which single bit was flipped, where that is all.
        wrong: the first samples that are not as the manifest has them.
        num_wrong: of all of them.
    """

    sha256: str = ""
    num_bytes: int = 0
    flipped: str = ""
    wrong: list[DamagedError] = field(default_factory=list)
    num_wrong: int = 0


@dataclass(frozen=True, kw_only=True)
class TarCheck:
    """One shard's tar beside its index and its rows of the manifest.

    Attributes:
        index: records (key, row, offset, length, crc32); None where there is none to go by: then bytes alone are hashed.
        entries: of the shard's rows in the manifest.
        sha256: that the tar's receipt vouches for; None where there is none.
        first_row: of the shard.
        reduced: whether the tar holds reduced images: then the manifest's digests are of others.
        hint: what to do about a sample that is not as it should be.
    """

    tar: Location
    index: NDArray[np.void] | None
    entries: Sequence[Entry]
    sha256: str | None
    first_row: int
    reduced: bool
    hint: str

    def read(self, threads: ThreadPoolExecutor) -> TarRead:
        """Read it all; where the tar is not as its receipt has it, once more for the digest of every image."""
        found = self._read(threads, digest_every=_DIGEST_EVERY)
        if found.sha256 != self.sha256 and not found.wrong and not self.reduced:
            found = self._read(threads, digest_every=1)
        return found

    def _read(self, threads: ThreadPoolExecutor, *, digest_every: int) -> TarRead:
        """The sha256 of a piece is computed by one of `threads` while its samples are looked at here."""
        size = self.tar.size() or 0
        found, hasher = TarRead(num_bytes=size), hashlib.sha256()
        reader = self.tar.open_ranges()
        try:
            hashed: Future[None] | None = None
            for first, stop, samples in self._pieces(size):
                piece = reader.read(first, stop - first)
                if hashed is not None:
                    hashed.result()
                hashed = threads.submit(hasher.update, piece)
                for sample in samples:
                    self._look_at(sample, piece, first, found, digested=sample % digest_every == 0)
            if hashed is not None:
                hashed.result()
        finally:
            reader.close()
        found.sha256 = hasher.hexdigest()
        return found

    def _pieces(self, size: int) -> Iterator[tuple[int, int, range]]:
        """(first byte, end, places in the index) of pieces that cover the tar."""
        records = self.index if self.index is not None else ()
        starts = [int(record["offset"]) - TAR_BLOCK for record in records]
        first = place = 0
        while first < size:
            end_place = place
            while end_place < len(starts) and starts[end_place] - first < _PIECE_BYTES:
                end_place += 1
            end = starts[end_place] if end_place < len(starts) else size
            if place == end_place and end - first > _PIECE_BYTES:
                end = first + _PIECE_BYTES  # no sample begins here
            yield first, end, range(place, end_place)
            first, place = end, end_place

    def _look_at(self, place: int, piece: bytes, first: int, found: TarRead, *, digested: bool) -> None:
        """Compare a sample in the tar with its entry in the manifest; note what differs."""
        assert self.index is not None
        record = self.index[place]
        row, length = int(record["row"]), int(record["length"])
        entry, begin = self.entries[row - self.first_row], int(record["offset"]) - first
        header, data = piece[begin - TAR_BLOCK : begin], memoryview(piece)[begin : begin + length]
        name = header[:100].rstrip(b"\0").decode("ascii", "replace")
        is_right = name.startswith(f"{entry.key}.") and record["key"].decode("ascii", "replace") == entry.key
        if not is_right or header != _header(name, length):
            self._note(found, row, entry, "a tar's member is not the sample of its row", entry.key, name or "no member")
            return
        metadata = sample_metadata(path=entry.path, row=row, digest=entry.digest, label=entry.label)
        beside = member_header(f"{entry.key}.json", len(metadata)) + metadata
        after = begin + length + -length % TAR_BLOCK
        if piece[after : after + len(beside)] != beside:
            self._note(
                found,
                row,
                entry,
                "the facts beside an image in a tar are not the manifest's",
                "path, row, digest and label as there",
                "others",
            )
        checksum = zlib.crc32(data)
        is_right = checksum == int(record["crc32"])
        digest = content_digest(data) if not self.reduced and (digested or not is_right) else ""
        if is_right and digest in ("", entry.digest):
            return
        syndrome = checksum ^ int(record["crc32"])
        bit = find_flipped_bit(length, syndrome, CRC32) if syndrome else None
        if bit is not None:
            found.flipped = (
                f"bit {bit.bit} of byte {first + begin + bit.byte}, in the image of row {row} ({entry.path})"
            )
        expected = f"digest {entry.digest}" if digest else f"crc32 {int(record['crc32']):08x}"
        self._note(
            found, row, entry, "an image in a tar is not the one of the manifest", expected, digest or f"{checksum:08x}"
        )

    def _note(self, found: TarRead, row: int, entry: Entry, what: str, expected: str, other: str) -> None:
        found.num_wrong += 1
        if len(found.wrong) < _MOST:
            found.wrong.append(
                DamagedError(
                    what,
                    code="sample-not-of-manifest",
                    where=f"{self.tar}, row {row}, {entry.path}",
                    expected=expected,
                    found=other,
                    hint=self.hint,
                )
            )


def _header(name: str, length: int) -> bytes:
    try:
        return member_header(name, length)
    except ValueError:  # no name that is ours
        return b""
