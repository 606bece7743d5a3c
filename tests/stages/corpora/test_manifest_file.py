"""The manifest's footer, which names each shard's pages, is read once in a process, and again where the file is another one."""

from __future__ import annotations

import io

import pytest
from teachonce.pipeline.storage import Location
from teachonce.stages.corpora import manifest_file
from teachonce.stages.corpora.manifest_file import MANIFEST, open_manifest
from teachonce.storage_schemas import manifest as manifest_schema
from teachonce.storage_schemas.errors import DamagedError
from teachonce.storage_schemas.manifest import Corpus, Entry, footer_digest, write_manifest
from teachonce.storage_schemas.samples import sample_key


def write(folder: Location, count: int, label: str = "l") -> Corpus:
    entries = [
        Entry(key=sample_key("n", f"{i}"), path=f"{i}.jpg", source=0, offset=-1, size=i, digest="d", label=label)
        for i in range(count)
    ]
    file = io.BytesIO()
    digest, _ = write_manifest(file, ([*some] for some in _threes(entries)))
    (folder / MANIFEST).write_bytes(file.getvalue())
    return Corpus(
        name="n",
        corpus_id=digest,
        listing_id="l",
        num_samples=count,
        shard_size=3,
        num_shards=-(-count // 3),
        resize=None,
        max_pixels=1,
        skipped=0,
        manifest_footer=footer_digest(file, "here"),
    )


def _threes(entries):
    return (entries[i : i + 3] for i in range(0, len(entries), 3))


@pytest.fixture
def read(monkeypatch) -> list[object]:
    """What footers were read of, from now on."""
    seen: list[object] = []

    def counting(file, where):
        seen.append(where)
        return footer_digest(file, where)

    monkeypatch.setattr(manifest_schema, "footer_digest", counting)
    monkeypatch.setattr(manifest_file, "_footer", None)
    return seen


def test_many_shards_take_one_footer(tmp_path, read):
    folder = Location.of(tmp_path)
    corpus = write(folder, 10)
    paths = [[entry.path for entry in open_manifest(folder, corpus).shard(shard)] for shard in range(4)]
    assert paths == [[f"{i}.jpg" for i in range(first, min(first + 3, 10))] for first in (0, 3, 6, 9)]
    assert len(read) == 1


def test_another_file_under_the_name_is_looked_at_anew(tmp_path, read):
    folder = Location.of(tmp_path)
    corpus = write(folder, 10)
    open_manifest(folder, corpus)
    other = write(folder, 10, "m")
    assert other.manifest_footer != corpus.manifest_footer
    assert open_manifest(folder, other).shard(0)[0].label == "m"
    with pytest.raises(DamagedError, match="the manifest is damaged"):
        open_manifest(folder, corpus)
    assert len(read) == 3


def test_pages_are_still_compared_with_their_checksums(tmp_path, read):
    folder = Location.of(tmp_path)
    corpus = write(folder, 10)
    open_manifest(folder, corpus)
    data = bytearray((folder / MANIFEST).read_bytes())
    data[len(data) // 3] ^= 1
    (folder / MANIFEST).write_bytes(bytes(data))
    with pytest.raises(DamagedError, match="the manifest is damaged"):
        list(open_manifest(folder, corpus))
