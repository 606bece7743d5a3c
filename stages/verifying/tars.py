"""Owns the full check of one shard's tar: every byte is read once, for the tar's sha256 and for what the manifest says of each image."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

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

#: Of so many samples one is looked at whole in a tar that is as its receipt has it: its headers, and its image's digest. The others'
#: digests stand in the tar, whose every byte has been hashed, beside an image that has the checksum of the index.
_WHOLE_EVERY = 16

#: Faulty samples of a shard that are told of.
_MOST = 5


class _Sample(NamedTuple):
    """A record of the index; `begin` is the first byte of the image."""

    key: bytes
    row: int
    begin: int
    length: int
    crc32: int


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
        in_place: whether the tar is somebody else's: then what stands beside an image in it says nothing of its row.
    """

    tar: Location
    index: NDArray[np.void] | None
    entries: Sequence[Entry]
    sha256: str | None
    first_row: int
    reduced: bool
    hint: str
    in_place: bool = False

    def read(self, threads: ThreadPoolExecutor) -> TarRead:
        """Read it all; where the tar is not as its receipt has it, once more for the digest of every image."""
        found = self._read(threads, whole_every=_WHOLE_EVERY)
        if found.sha256 != self.sha256 and not found.wrong and not self.reduced:
            found = self._read(threads, whole_every=1)
        return found

    def _read(self, threads: ThreadPoolExecutor, *, whole_every: int) -> TarRead:
        """The sha256 of a piece is computed by one of `threads` while its samples are looked at here."""
        size = self.tar.size() or 0
        found, hasher = TarRead(num_bytes=size), hashlib.sha256()
        reader = self.tar.open_ranges()
        samples = self._samples()
        try:
            hashed: Future[None] | None = None
            for first, stop, places in _pieces(samples, size):
                piece = reader.read(first, stop - first)
                if hashed is not None:
                    hashed.result()
                hashed = threads.submit(hasher.update, piece)
                for place in places:
                    self._look_at(samples[place], piece, first, found, whole=place % whole_every == 0)
            if hashed is not None:
                hashed.result()
        finally:
            reader.close()
        found.sha256 = hasher.hexdigest()
        return found

    def _samples(self) -> list[_Sample]:
        """Those of the index."""
        if self.index is None:
            return []
        columns = (self.index[name].tolist() for name in ("key", "row", "offset", "length", "crc32"))
        return [_Sample(*values) for values in zip(*columns, strict=True)]

    def _look_at(self, sample: _Sample, piece: bytes, first: int, found: TarRead, *, whole: bool) -> None:
        """Compare a sample in the tar with its entry in the manifest; note what differs.

        Args:
            piece: of the tar, from the byte `first` on.
            whole: whether headers and the image's digest are compared too; else names, facts and the index's checksum.
        """
        entry, begin = self.entries[sample.row - self.first_row], sample.begin - first
        image = memoryview(piece)[begin : begin + sample.length]
        if sample.key != entry.key.encode("ascii") or not (self.in_place or _has_header(sample, piece, begin, whole)):
            name = _name(piece, begin - TAR_BLOCK) or "no member"
            self._note(found, entry, sample, "a tar's member is not the sample of its row", entry.key, name)
            return
        if not self.in_place and not _has_facts(entry, sample, piece, begin, whole):
            what, expected = (
                "the facts beside an image in a tar are not the manifest's",
                "path, row, digest and label as there",
            )
            self._note(found, entry, sample, what, expected, "others")
        checksum = zlib.crc32(image)
        is_right = checksum == sample.crc32
        digest = content_digest(image) if not self.reduced and (whole or not is_right) else ""
        if is_right and digest in ("", entry.digest):
            return
        bit = None if is_right else find_flipped_bit(sample.length, checksum ^ sample.crc32, CRC32)
        if bit is not None:
            byte = sample.begin + bit.byte
            found.flipped = f"bit {bit.bit} of byte {byte}, in the image of row {sample.row} ({entry.path})"
        expected, other = (
            (f"digest {entry.digest}", digest) if digest else (f"crc32 {sample.crc32:08x}", f"{checksum:08x}")
        )
        self._note(found, entry, sample, "an image in a tar is not the one of the manifest", expected, other)

    def _note(self, found: TarRead, entry: Entry, sample: _Sample, what: str, expected: str, other: str) -> None:
        found.num_wrong += 1
        if len(found.wrong) < _MOST:
            found.wrong.append(
                DamagedError(
                    what,
                    code="sample-not-of-manifest",
                    where=f"{self.tar}, row {sample.row}, {entry.path}",
                    expected=expected,
                    found=other,
                    hint=self.hint,
                )
            )


def _has_header(sample: _Sample, piece: bytes, begin: int, whole: bool) -> bool:
    """Whether the name of the sample's key stands before its image; `whole`: and all of a header as we write it."""
    at = begin - TAR_BLOCK
    if not piece.startswith(sample.key + b".", at):
        return False
    return not whole or piece[at:begin] == _header(_name(piece, at), sample.length)


def _has_facts(entry: Entry, sample: _Sample, piece: bytes, begin: int, whole: bool) -> bool:
    """Whether what the manifest has of a sample stands behind its image."""
    metadata = sample_metadata(path=entry.path, row=sample.row, digest=entry.digest, label=entry.label)
    after = begin + sample.length + -sample.length % TAR_BLOCK
    if not (piece.startswith(sample.key + b".json\0", after) and piece.startswith(metadata, after + TAR_BLOCK)):
        return False
    return not whole or piece.startswith(member_header(f"{entry.key}.json", len(metadata)), after)


def _pieces(samples: Sequence[_Sample], size: int) -> Iterator[tuple[int, int, range]]:
    """(first byte, end, places of samples) of pieces that cover a tar, each of whole samples.

    Args:
        samples: in the order of their images in the tar.
        size: of the tar.
    """
    starts = [sample.begin - TAR_BLOCK for sample in samples]
    first = place = 0
    while first < size:
        end_place = place
        while end_place < len(starts) and starts[end_place] - first < _PIECE_BYTES:
            end_place += 1
        end = starts[end_place] if end_place < len(starts) else size
        if place == end_place:
            end = min(end, first + _PIECE_BYTES)  # no sample begins here
        else:
            behind = samples[end_place - 1].begin + samples[end_place - 1].length
            end = behind if end - behind > _PIECE_BYTES else end  # what follows is no sample's
        yield first, end, range(place, end_place)
        first, place = end, end_place


def _name(piece: bytes, at: int) -> str:
    """The name in the header of a member."""
    return piece[at : at + 100].rstrip(b"\0").decode("ascii", "replace")


def _header(name: str, length: int) -> bytes:
    try:
        return member_header(name, length)
    except ValueError:  # no name that is ours
        return b""
