"""What one unit of `teachonce shard --in-place` does: the offset index of a tar that stays where it is, and its receipt."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence

from ..pipeline.storage import Location
from ..pipeline.types import Timer
from ..storage_schemas.manifest import Entry
from ..storage_schemas.receipt import InvalidRow, Output, Receipt
from ..storage_schemas.samples import content_digest, shard_name
from ..storage_schemas.tar_index import encode_index
from .corpora.generations import SHARD_FILES
from .corpora.images import BadImage, one_image
from .corpora.tar_in_place import TarInPlace, tar_changed


def index_tar(
    tar: TarInPlace,
    *,
    shard: int,
    rows: range,
    size: int,
    entries: Sequence[Entry],
    probe: Callable[[bytes], str],
    out: Location,
    fingerprint: str,
    timer: Timer,
) -> Receipt:
    """Read a tar once: its sha256, and of each image whether it is the manifest's and can be used.

    Args:
        size: bytes of the tar that the manifest was made of.
        entries: of the shard's rows, in the manifest.
        probe: the extension of an image's format, from its bytes; raises `BadImage`, or whatever a decoder does.

    Raises:
        DamagedError: the tar has changed since the manifest was frozen.
    """
    tar.refuse_other(size)
    records: list[tuple[bytes, int, int, int, int]] = []
    invalid: list[InvalidRow] = []
    hasher = hashlib.blake2b(digest_size=16)
    tar_name, index_name = (f"{shard_name(shard)}{ending}" for ending in SHARD_FILES)
    with timer.laps() as lap:
        here = tar.at_hand(anew=True)
        sha256 = here.sha256()
        lap("read")
        for row, entry in zip(rows, entries, strict=True):
            hasher.update(f"{row} {entry.key} {entry.digest}\n".encode())
            try:
                if entry.problem is not None:
                    raise BadImage(entry.problem)
                data = here.read_range(entry.offset, entry.size)
                if content_digest(data) != entry.digest:
                    digests = f"{entry.path} with digest {entry.digest}", f"another with {content_digest(data)}"
                    raise tar_changed(tar.location, *digests)
                with one_image(entry.path):
                    probe(data)
            except BadImage as bad:
                invalid.append(InvalidRow(row=row, path=entry.path, reason=str(bad)))
            else:
                records.append((entry.key.encode(), row, entry.offset, len(data), zlib.crc32(data)))
            timer.advance(1)
            lap("check")
        index = encode_index(records)
        (out / index_name).write_bytes(index)
        lap("write")
    vouched = Output(path=tar_name, bytes=tar.size, sha256=sha256, place=out.way_to(tar.location), version=tar.version)
    return Receipt(
        key=shard_name(shard),
        outputs=(vouched, Output(path=index_name, bytes=len(index), sha256=hashlib.sha256(index).hexdigest())),
        rows=len(entries),
        invalid_rows=tuple(invalid),
        digest=hasher.hexdigest(),
        fingerprint=fingerprint,
    )
