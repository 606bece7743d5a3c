"""A tar as a corpus: which members are found, which labels they have, and what is refused."""

from __future__ import annotations

import io
import tarfile

import pytest
import webdataset
from teachonce.stages.corpora.sources import open_sources
from teachonce.storage_schemas.errors import InputError


def paths(source) -> list[str]:
    return [found.path for found in source.walk() if found.is_image]


def labels(source) -> dict[str, str | None]:
    return {found.path: found.label for found in source.walk() if found.is_image}


def make_tar(path, members: dict[str, bytes], mode: str = "w") -> str:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


def test_plain_tars_are_read_in_place(tmp_path):
    tar = make_tar(
        tmp_path / "t.tar",
        {"dog/2.jpg": b"two", "cat/1.jpg": b"one", "../../evil.png": b"evil", "x.txt": b""},
    )
    (source,) = open_sources([tar])
    assert paths(source) == ["../../evil.png", "cat/1.jpg", "dog/2.jpg"]
    assert labels(source)["cat/1.jpg"] == "cat"
    for found in source.walk():
        if found.path == "cat/1.jpg":
            assert source.read(found.path, found.offset, found.size) == b"one"


def test_webdataset_tars_bring_their_labels(tmp_path):
    path = tmp_path / "w-000.tar"
    with webdataset.TarWriter(str(path)) as writer:
        writer.write({"__key__": "a", "jpg": b"j", "cls": b"7"})
        writer.write({"__key__": "b", "png": b"p", "json": b'{"label": "cat"}'})
        writer.write({"__key__": "c", "webp": b"w", "json": b"not json"})
    (source,) = open_sources([str(path)])
    assert labels(source) == {"a.jpg": "7", "b.png": "cat", "c.webp": None}


def test_a_tar_that_was_cut_is_refused_wherever_it_was_cut(tmp_path):
    make_tar(tmp_path / "t.tar", {f"{i}.jpg": b"x" * 600 for i in range(4)})
    whole = (tmp_path / "t.tar").read_bytes()
    block = 512 + 1024
    for length in (2 * block, 2 * block + 100, 2 * block + 700, block - 10):
        cut = tmp_path / "cut.tar"
        cut.write_bytes(whole[:length])
        (source,) = open_sources([str(cut)])
        with pytest.raises(
            InputError, match=r"a tar ends without its end mark|not a whole, uncompressed tar"
        ):
            paths(source)


def test_tars_with_a_name_twice_or_compressed_are_refused(tmp_path):
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("1.jpg"))
    (source,) = open_sources([str(tmp_path / "d.tar")])
    with pytest.raises(InputError, match=r"^a tar holds the same name twice: .*d\.tar: 1\.jpg$"):
        paths(source)
    gz = make_tar(tmp_path / "t.tar.gz", {"1.jpg": b"x"}, "w:gz")
    (source,) = open_sources([gz])
    with pytest.raises(InputError, match=r"^not a whole, uncompressed tar: .* Next: decompress it first$"):
        paths(source)
