"""Owns the full check of one shard's tar: every byte is read once, for the tar's sha256 and for what the manifest says of each image."""

from __future__ import annotations

import hashlib
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.samples import TAR_BLOCK, content_digest
from ...storage_schemas.tar_file import member_header
from .flipped_bit import CRC32, find_flipped_bit
from .shard_rows import ShardRows

#: Bytes of a piece: whole samples, about so many.
_PIECE_BYTES = 1 << 20

#: Of so many samples one is looked at whole in a tar that is as its receipt has it: its headers, and its image's digest. The others'
#: digests stand in the tar, whose every byte has been hashed, beside an image that has the checksum of the index.
_WHOLE_EVERY = 16

#: Faulty samples of a shard that are told of.
_MOST = 5


class _Sample(NamedTuple):
    """A record of the index; `begin` is the first byte of the image, `is_named` whether its key is that of its row in the manifest."""

    key: bytes
    row: int
    begin: int
    length: int
    crc32: int
    is_named: bool


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
        rows: of the shard, in the manifest.
        sha256: that the tar's receipt vouches for; None where there is none.
        reduced: whether the tar holds reduced images: then the manifest's digests are of others.
        hint: what to do about a sample that is not as it should be.
        in_place: whether the tar is somebody else's: then what stands beside an image in it says nothing of its row.
    """

    tar: Location
    index: NDArray[np.void] | None
    rows: ShardRows
    sha256: str | None
    reduced: bool
    hint: str
    in_place: bool = False

    def read(self, threads: ThreadPoolExecutor | None) -> TarRead:
        """Read it all; where the tar is not as its receipt has it, once more for the digest of every image.

        Args:
            threads: one of them computes the sha256 of a piece while its samples are looked at here; None does both here.
        """
        found = self._read(threads, whole_every=_WHOLE_EVERY)
        if found.sha256 != self.sha256 and not found.wrong and not self.reduced:
            found = self._read(threads, whole_every=1)
        return found

    def _read(self, threads: ThreadPoolExecutor | None, *, whole_every: int) -> TarRead:
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
                if threads is None:
                    hasher.update(piece)
                else:
                    hashed = threads.submit(hasher.update, piece)
                for place in self._unsettled(samples, places, piece, first, whole_every):
                    self._look_at(samples[place], piece, first, found, whole=place % whole_every == 0)
            if hashed is not None:
                hashed.result()
        finally:
            reader.close()
        found.sha256 = hasher.hexdigest()
        return found

    def _samples(self) -> list[_Sample]:
        """Those of the index, in the order of their images in the tar."""
        if self.index is None:
            return []
        index = self.index[np.argsort(self.index["offset"], kind="stable")]
        named_N = index["key"] == self.rows.keys_N[index["row"] - self.rows.first_row]
        columns = (index[name].tolist() for name in ("key", "row", "offset", "length", "crc32"))
        return [_Sample(*values) for values in zip(*columns, named_N.tolist(), strict=True)]

    def _unsettled(
        self, samples: Sequence[_Sample], places: range, piece: bytes, first: int, whole_every: int
    ) -> Iterator[int]:
        """Places of samples to look at closely: one in `whole_every`, and any that is not as it should be at a glance.

        The loop that every sample goes through: there is nothing in it that few of them need.
        """
        content, metadata, beside = memoryview(piece), self.rows.metadata, not self.in_place
        for place in places:
            key, row, begin, length, crc32, is_named = samples[place]
            at = begin - first
            after = at + length + -length % TAR_BLOCK
            is_right = (
                is_named
                and place % whole_every
                and zlib.crc32(content[at : at + length]) == crc32
                and (
                    not beside
                    or (
                        piece.startswith(key + b".", at - TAR_BLOCK)
                        and piece.startswith(key + b".json\0", after)
                        and piece.startswith(metadata(row), after + TAR_BLOCK)
                    )
                )
            )
            if not is_right:
                yield place

    def _look_at(self, sample: _Sample, piece: bytes, first: int, found: TarRead, *, whole: bool) -> None:
        """Compare a sample in the tar with its row of the manifest; note what differs.

        Args:
            piece: of the tar, from the byte `first` on.
            whole: whether headers and the image's digest are compared too; else names, facts and the index's checksum.
        """
        begin, at = sample.begin - first, sample.row - self.rows.first_row
        image = memoryview(piece)[begin : begin + sample.length]
        if not sample.is_named or not (self.in_place or _has_header(sample, piece, begin, whole)):
            name = _name(piece, begin - TAR_BLOCK) or "no member"
            self._note(found, sample, "a tar's member is not the sample of its row", self.rows.keys[at], name)
            return
        if not self.in_place and not _has_facts(self.rows.metadata(sample.row), sample, piece, begin, whole):
            what, expected = (
                "the facts beside an image in a tar are not the manifest's",
                "path, row, digest and label as there",
            )
            self._note(found, sample, what, expected, "others")
        checksum = zlib.crc32(image)
        is_right = checksum == sample.crc32
        digest = content_digest(image) if not self.reduced and (whole or not is_right) else ""
        if is_right and digest in ("", self.rows.digests[at]):
            return
        bit = None if is_right else find_flipped_bit(sample.length, checksum ^ sample.crc32, CRC32)
        if bit is not None:
            byte = sample.begin + bit.byte
            found.flipped = f"bit {bit.bit} of byte {byte}, in the image of row {sample.row} ({self.rows.paths[at]})"
        expected, other = (
            (f"digest {self.rows.digests[at]}", digest) if digest else (f"crc32 {sample.crc32:08x}", f"{checksum:08x}")
        )
        self._note(found, sample, "an image in a tar is not the one of the manifest", expected, other)

    def _note(self, found: TarRead, sample: _Sample, what: str, expected: str, other: str) -> None:
        found.num_wrong += 1
        if len(found.wrong) < _MOST:
            found.wrong.append(
                DamagedError(
                    what,
                    code="sample-not-of-manifest",
                    where=f"{self.tar}, row {sample.row}, {self.rows.paths[sample.row - self.rows.first_row]}",
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


def _has_facts(metadata: bytes, sample: _Sample, piece: bytes, begin: int, whole: bool) -> bool:
    """Whether what the manifest has of a sample stands behind its image."""
    after = begin + sample.length + -sample.length % TAR_BLOCK
    if not (piece.startswith(sample.key + b".json\0", after) and piece.startswith(metadata, after + TAR_BLOCK)):
        return False
    name = sample.key.decode("ascii") + ".json"
    return not whole or piece.startswith(member_header(name, len(metadata)), after)


def _pieces(samples: Sequence[_Sample], size: int) -> Iterator[tuple[int, int, range]]:
    """(first byte, end, places of samples) of pieces that cover a tar, each of whole samples.

    Args:
        samples: in the order of their images in the tar.
        size: of the tar.
    """
    starts = [sample.begin - TAR_BLOCK for sample in samples]
    first = place = 0
    while first < size:
        end_place = bisect_left(starts, first + _PIECE_BYTES, place)
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
