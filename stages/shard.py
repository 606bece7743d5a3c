"""`teachonce shard`: writes one WebDataset tar, one offset index and one receipt for each shard of a frozen corpus."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from ..pipeline.output import check_output, claim_output
from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..pipeline.types import Resources, RunUnit, Timer, Unit
from ..storage_schemas.errors import InputError, Unreachable
from ..storage_schemas.fingerprint import Fingerprint
from ..storage_schemas.formats import SHARDS
from ..storage_schemas.manifest import Corpus, Entry, ManifestReader
from ..storage_schemas.receipt import InvalidRow, Output, Receipt
from ..storage_schemas.samples import content_digest, sample_metadata, shard_name
from ..storage_schemas.tar_file import TarFile
from ..storage_schemas.tar_index import encode_index
from .corpora.corpus import freeze_corpus
from .corpora.images import BadImage, one_image
from .corpora.manifest_file import open_manifest
from .corpora.reading import read_image, unreachable_reason
from .corpora.source import Source
from .inputs.sources import open_sources
from .samples.images import IMAGES
from .samples.kind import SampleKind
from .settings.shard import ShardSettings


@dataclass(frozen=True, kw_only=True)
class ShardStage:
    """Shard *i* of the manifest becomes `NNNNNN.tar`, `NNNNNN.index.npy` and a receipt.

    Attributes:
        give_up_on_unreachable: images that cannot be read at the moment become unusable rows; else they fail their shard.
    """

    out: Location
    sources: tuple[Source, ...]
    corpus: Corpus
    kind: SampleKind
    give_up_on_unreachable: bool = False

    name = "shard"
    resources = Resources()

    @property
    def fingerprint(self) -> Fingerprint:
        fields = {"schema_version": SHARDS.version, "corpus_id": self.corpus.corpus_id}
        if self.corpus.resize is not None:
            fields |= {"resize": self.corpus.resize, **(self.kind.reducer() or {})}
        return Fingerprint(fields=fields)

    def plan(self) -> Iterator[Unit]:
        for shard in range(self.corpus.num_shards):
            yield Unit(key=shard_name(shard), rows=len(self.corpus.shard_rows(shard)), inputs={"shard": shard})

    def open(self) -> RunUnit:
        return _Writing(self, open_manifest(self.out, self.corpus))

    def _write(self, shard: int, entries: Sequence[Entry], timer: Timer) -> Receipt:
        records: list[tuple[bytes, int, int, int, int]] = []
        invalid: list[InvalidRow] = []
        hasher = hashlib.blake2b(digest_size=16)
        tar, index = self.out / f"{shard_name(shard)}.tar", self.out / f"{shard_name(shard)}.index.npy"
        with timer.laps() as lap:
            with tar.create(settle=False) as file:
                writer = TarFile(file)
                for row, entry in zip(self.corpus.shard_rows(shard), entries, strict=True):
                    hasher.update(f"{row} {entry.key} {entry.digest}\n".encode())
                    try:
                        data = self._read(entry)
                        lap("read")
                        with one_image(entry.path):
                            data, extension = self._check(data)
                            metadata = sample_metadata(path=entry.path, row=row, digest=entry.digest, label=entry.label)
                        lap("check")
                    except (BadImage, Unreachable) as bad:
                        if isinstance(bad, Unreachable) and not self.give_up_on_unreachable:
                            bad.hint = f"{bad.hint}, or add --give-up-on-unreachable to leave such images out"
                            raise
                        reason = unreachable_reason(bad) if isinstance(bad, Unreachable) else str(bad)
                        invalid.append(InvalidRow(row=row, path=entry.path, reason=reason))
                        timer.advance(1)
                        lap("check")
                        continue
                    offset = writer.add(f"{entry.key}.{extension}", data)
                    writer.add(f"{entry.key}.json", metadata)
                    records.append((entry.key.encode(), row, offset, len(data), zlib.crc32(data)))
                    timer.advance(1)
                    lap("write")
                writer.finish()
            index_bytes = encode_index(records)
            index.write_bytes(index_bytes)  # syncs the folder too, for both
            lap("write")
        return Receipt(
            key=shard_name(shard),
            outputs=(
                Output(path=tar.name, bytes=writer.size, sha256=writer.sha256.hexdigest()),
                Output(path=index.name, bytes=len(index_bytes), sha256=hashlib.sha256(index_bytes).hexdigest()),
            ),
            rows=len(entries),
            invalid_rows=tuple(invalid),
            digest=hasher.hexdigest(),
            fingerprint=self.fingerprint.digest,
        )

    def _read(self, entry: Entry) -> bytes:
        if entry.problem is not None:
            raise BadImage(entry.problem)
        try:
            data = read_image(self.sources[entry.source], self._path_in_source(entry), entry.offset, entry.size)
        except BadImage:  # it could be read when the manifest was frozen
            data = b""
        if len(data) != entry.size or content_digest(data) != entry.digest:
            raise InputError(
                "a file has changed since the manifest was frozen",
                code="file-changed",
                where=entry.path,
                expected=f"{entry.size} bytes with digest {entry.digest}",
                found=f"{len(data)} bytes, {content_digest(data)}",
                hint="put the file back, or shard the changed corpus to another --out",
            )
        return data

    def _path_in_source(self, entry: Entry) -> str:
        return entry.path if len(self.sources) == 1 else entry.path.partition("/")[2]

    def _check(self, data: bytes) -> tuple[bytes, str]:
        if self.corpus.resize is not None:
            data = self.kind.reduce(data, self.corpus.resize, self.corpus.max_pixels)
        return data, self.kind.probe(data, self.corpus.max_pixels)


@dataclass(frozen=True)
class _Writing:
    """Writes one shard after another."""

    stage: ShardStage
    manifest: ManifestReader

    def __call__(self, unit: Unit, timer: Timer) -> Receipt:
        shard = unit.inputs["shard"]
        return self.stage._write(shard, self.manifest.shard(shard), timer)


def plan_shard(
    corpus: Sequence[str],
    *,
    out: Location | str,
    settings: ShardSettings | None = None,
    kind: SampleKind = IMAGES,
) -> ShardStage:
    """Freeze the corpus and return the stage that shards it.

    Args:
        corpus: folders, tars, or lists, each `PATH` or `NAME=PATH`.
        out: folder for manifest, tars and ledger.
        settings: None for the defaults.
        kind: what files count as samples, and how they are checked and reduced.

    Raises:
        InputError, MismatchError, Unreachable: see `open_sources` and `freeze_corpus`; an impossible setting.
    """
    settings = settings or ShardSettings()
    check(settings)
    location = Location.of(out)
    if settings.resize is not None and kind.reducer() is None:
        raise InputError(
            f"samples of kind '{kind.name}' cannot be reduced",
            code="sample-kind-not-resizable",
            where="--resize",
            hint="leave it out",
        )
    check_output(location, ShardStage.name, inputs=corpus)
    sources = open_sources(corpus, kind=kind, max_bytes=settings.max_bytes)
    claim_output(location, ShardStage.name)
    return ShardStage(
        out=location,
        sources=sources,
        corpus=freeze_corpus(sources, location, sample_kind=kind.name, **asdict(settings)),
        kind=kind,
        give_up_on_unreachable=settings.give_up_on_unreachable,
    )
