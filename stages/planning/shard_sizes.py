"""Owns what shards take: tars, indexes, manifest and ledger, by the sizes of the corpus's files and shards of a sample."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.manifest import Entry, write_manifest
from ...storage_schemas.tar_file import file_bytes, member_bytes
from ...storage_schemas.tar_index import encode_index
from ..corpora.shards import ShardSet
from .corpus import PlannedCorpus
from .figures import Basis, Figure
from .scratch import folder_bytes

#: A member is padded to a whole block: by half of one in the mean, where sizes are not known one by one.
MEAN_PADDING = 256


@dataclass(frozen=True, kw_only=True)
class ShardSizes:
    """What the folder of shards takes.

    Attributes:
        image_bytes: of one image in a tar, in the mean: what training reads of it.
        parts: bytes of each kind of file.
    """

    objects: int
    image_bytes: Figure
    parts: dict[str, Figure]

    @property
    def bytes(self) -> Figure:
        return Figure.of(sum(part.value for part in self.parts.values()), *self.parts.values())


def finished_sizes(planned: PlannedCorpus) -> ShardSizes:
    """Of shards that are there."""
    assert planned.finished is not None
    assert planned.image_bytes is not None
    files, size = planned.finished
    return ShardSizes(
        objects=files,
        image_bytes=planned.image_bytes,
        parts={"on disk": Figure(value=size, basis=Basis.COUNTED)},
    )


def shard_sizes(planned: PlannedCorpus, sample: ShardSet, entries: Sequence[Entry]) -> ShardSizes:
    """Of shards that are not made yet.

    Args:
        sample: shards of a sample.
        entries: of that sample.
    """
    lengths = _lengths(sample)
    image, member = _image(planned, entries, lengths)
    usable = len(lengths) / len(entries)
    basis = max(image.basis, Basis.COUNTED if usable == 1 else Basis.MEASURED)
    tars = indexes = 0
    rows = [planned.shard_size] * (planned.rows // planned.shard_size)
    rows += [planned.rows % planned.shard_size] * bool(planned.rows % planned.shard_size)
    for number, count in {rows_of: rows.count(rows_of) for rows_of in set(rows)}.items():
        inside = round(number * usable)
        tars += count * file_bytes(round(inside * (member + planned.metadata_bytes)))
        indexes += count * len(encode_index([(b"", 0, 0, 0, 0)] * inside))
    notes = _ledger_files(sample)
    parts = {
        "tars": Figure(value=tars, basis=basis),
        "indexes": Figure(value=indexes, basis=basis),
        "manifest": Figure(
            value=_manifest(entries, rows) + (sample.location / "corpus.json").read_bytes().__len__(),
            basis=Basis.MEASURED,
        ),
        "ledger": Figure(value=notes.once + notes.each * len(rows), basis=Basis.MEASURED),
    }
    return ShardSizes(objects=4 * len(rows) + 3, image_bytes=image, parts=parts)


def _lengths(sample: ShardSet) -> list[int]:
    """Bytes of the usable images of a sample, as its tars hold them."""
    lengths: list[int] = []
    for shard in range(sample.corpus.num_shards):
        reader = sample.reader(shard)
        lengths += reader.index["length"].tolist()
        reader.close()
    return lengths


def _image(planned: PlannedCorpus, entries: Sequence[Entry], lengths: Sequence[int]) -> tuple[Figure, float]:
    """Bytes of an image in the tars, and of its member, in the mean."""
    if planned.resize is None and planned.image_bytes is not None and planned.member_bytes is not None:
        return planned.image_bytes, planned.member_bytes
    kept, before = sum(lengths), sum(entry.size for entry in entries if entry.problem is None)
    members = sum(map(member_bytes, lengths)) / len(lengths)
    if planned.image_bytes is None:
        return Figure(value=kept / len(lengths), basis=Basis.MEASURED), members
    # Of the images' own mean, which is known, so many are left: surer than the mean of the sample.
    scale = planned.image_bytes.value * kept / before
    return Figure.of(scale, planned.image_bytes, Basis.MEASURED), scale + members - kept / len(lengths)


def _manifest(entries: Sequence[Entry], rows: Sequence[int]) -> float:
    """Bytes of a manifest with row groups of so many rows: by those of three small ones."""

    def written(*groups: Sequence[Entry]) -> int:
        file = io.BytesIO()
        write_manifest(file, map(list, groups))
        return len(file.getvalue())

    half = max(1, len(entries) // 2)
    one, two = written(entries), written(entries[:half], entries[half:]) if len(entries) > 1 else 0
    if not two:
        return float(one * sum(rows))
    each_row = (one - written(entries[:half])) / (len(entries) - half)
    each_group = two - one
    return one + (len(rows) - 1) * each_group + (sum(rows) - len(entries)) * each_row


@dataclass(frozen=True, kw_only=True)
class LedgerFiles:
    """Bytes of a stage's ledger: once, and for each unit."""

    once: float
    each: float


def _ledger_files(sample: ShardSet) -> LedgerFiles:
    return ledger_files(sample.location, "shard")


def ledger_files(out: Location, stage: str) -> LedgerFiles:
    """Of a small run of the same stage."""
    ledger = Ledger(out, stage)
    units = len(ledger.done_keys())
    each = sum(folder_bytes(ledger.folder / name)[1] for name in ("receipts", "timings"))
    return LedgerFiles(once=folder_bytes(ledger.folder)[1] - each, each=each / max(1, units))
