"""Owns shards of a sample of images: real ones, in a scratch folder, for the teacher to be timed on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...pipeline.storage import Location
from ...storage_schemas.errors import Unreachable
from ...storage_schemas.fingerprint import digest_json
from ...storage_schemas.manifest import Corpus, Entry, footer_digest, write_manifest
from ...storage_schemas.samples import content_digest, sample_key
from ..corpora.images import BadImage
from ..corpora.manifest_file import MANIFEST
from ..corpora.reading import unreachable_reason
from ..corpora.source import SourceFile
from .corpus import Picked, PlannedCorpus


@dataclass(frozen=True)
class SampleSource:
    """Reads the picked files by their paths in the corpus."""

    name: str
    files: dict[str, Picked]

    def walk(self) -> Iterator[SourceFile]:
        for path in sorted(self.files, key=str.encode):
            yield SourceFile(path=path, size=-1, label=self.files[path].label)

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self.files[path].read()


@dataclass(frozen=True)
class Sample:
    """A frozen sample in a folder: what `shard` takes to write its tars.

    Attributes:
        entries: in the order of their rows.
    """

    location: Location
    source: SampleSource
    corpus: Corpus
    entries: Sequence[Entry]


def freeze_sample(planned: PlannedCorpus, out: Location, *, shard_size: int) -> Sample:
    """Write manifest and `corpus.json` of the picked images, which have the keys that they have in the whole corpus."""
    source = SampleSource(planned.name, {file.path: file for file in planned.picked})
    entries = sorted((_entry(planned, file) for file in source.files.values()), key=lambda entry: entry.key)
    out.make_dir()
    with (out / MANIFEST).create() as file:
        write_manifest(file, (entries[i : i + shard_size] for i in range(0, len(entries), shard_size)))
    with (out / MANIFEST).open() as manifest:
        footer = footer_digest(manifest, out / MANIFEST)
    keys = digest_json([entry.key for entry in entries])
    corpus = Corpus(
        name=planned.name,
        corpus_id=keys,
        listing_id=keys,
        num_samples=len(entries),
        shard_size=shard_size,
        num_shards=-(-len(entries) // shard_size),
        resize=planned.resize,
        max_pixels=planned.max_pixels,
        skipped=0,
        sample_kind=planned.sample_kind,
        order="hash",
        manifest_footer=footer,
    )
    (out / "corpus.json").write_bytes(corpus.to_bytes())
    return Sample(out, source, corpus, entries)


def _entry(planned: PlannedCorpus, file: Picked) -> Entry:
    data, problem = b"", None
    try:
        data = file.read()
    except BadImage as bad:
        problem = str(bad)
    except Unreachable as error:
        problem = unreachable_reason(error)
    return Entry(
        key=sample_key(planned.name, file.path),
        path=file.path,
        source=0,
        offset=-1,
        size=len(data),
        digest="" if problem else content_digest(data),
        label=file.label,
        problem=problem,
    )
