"""What a user may bring: folders, tars, lists; in which order it comes, and what is refused."""

from __future__ import annotations

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
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


def test_folders_come_in_bytewise_order_of_full_paths(tmp_path):
    names = [
        "b/1.jpg",
        "a/z.jpg",
        "a.jpg",
        "a-b/1.JPG",
        "a/b/c.png",
        "ü/1.webp",
        "B.jpeg",
        "notes.txt",
        ".hidden/1.jpg",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (source,) = open_sources([str(tmp_path)])
    expected = sorted((n for n in names if "notes" not in n and "hidden" not in n), key=lambda n: n.encode())
    assert paths(source) == expected
    assert labels(source)["a/b/c.png"] == "b"
    assert labels(source)["a.jpg"] is None
    assert [f.path for f in source.walk() if not f.is_image] == ["notes.txt"]


def test_a_link_to_a_folder_above_ends(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (source,) = open_sources([str(tmp_path)])
    assert paths(source) == ["a/1.jpg"]


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


def test_lists_of_paths_as_text_and_parquet(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"one")
    (tmp_path / "2.jpg").write_bytes(b"two")
    text = tmp_path / "list.txt"
    text.write_text("# mine\n2.jpg\tdog\n\n1.jpg\n")
    table = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["2.jpg", "1.jpg"], "label": ["dog", None]}), table)
    for file in (text, table):
        (source,) = open_sources([str(file)])
        assert labels(source) == {"1.jpg": None, "2.jpg": "dog"}
        assert source.read("2.jpg", -1, 3) == b"two"
    for content, message in {
        "1.jpg\n1.jpg\n": "a list names the same image twice",
        "pipe:cat x\n": "pipe: runs a command from data and is refused",
    }.items():
        text.write_text(content)
        with pytest.raises(InputError, match=f"^{message}"):
            paths(open_sources([str(text)])[0])
    pq.write_table(pa.table({"file": ["1.jpg"]}), table)
    with pytest.raises(
        InputError, match=r"a Parquet list needs a column: .*: expected path or url, found \['file'\]"
    ):
        paths(open_sources([str(table)])[0])


def test_sources_are_mixed_named_and_told_apart(tmp_path):
    for name in ("x/a", "y/a"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(
        InputError, match="^two sources have the same name: a. Next: name them apart: a-a=PATH a-b=PATH$"
    ):
        open_sources([str(tmp_path / "x/a"), str(tmp_path / "y/a")])
    named = open_sources([f"two={tmp_path / 'x/a'}", f"one={tmp_path / 'y/a'}"])
    assert [source.name for source in named] == ["one", "two"]
    with pytest.raises(InputError, match="^no such corpus: .*nothing. Next: check the path$"):
        open_sources([str(tmp_path / "nothing")])
