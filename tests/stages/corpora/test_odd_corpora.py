"""Odd folders and tars through the command `shard`: every row has its bytes or its reason, and what is left out is told."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.stages.corpora.images import decode
from teachonce.stages.corpora.left_out import left_out_text
from teachonce.stages.corpora.shards import ShardSet
from teachonce.storage_schemas.samples import sample_key

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"

#: A resolution unit of an impossible type, beside a good orientation.
ODD_EXIF = (
    b"Exif\0\0II*\0\x08\0\0\0"
    + struct.pack("<HHHI4sHHI4s", 2, 0x112, 3, 1, b"\6\0\0\0", 0x128, 1, 1, b"\2\0\0\0")
    + bytes(4)
)


def jpeg(seed: int, size=(48, 40), **options) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, 77).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(*members: tuple[str, bytes | str]) -> bytes:
    """Text as a member's content makes a symbolic link to it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname, data = tarfile.SYMTYPE, data, b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def shard(corpus, out, *options) -> tuple[int, str]:
    arguments = ["shard", corpus, "--out", out, "--name", "n", "--executor", "serial", *options]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr


def rows(out) -> dict[str, tuple[str | None, bytes | str]]:
    """Label, and the bytes in the tar or the reason why there are none, of each sample."""
    shards = ShardSet.open(str(out))
    (reader,) = [shards.reader(0)]
    entries = list(enumerate(shards.manifest().shard(0)))
    found = {e.path: (e.label, reader.invalid.get(row) or reader.read(row)) for row, e in entries}
    assert [e.key for _, e in entries] == [sample_key("n", path) for path in found]
    reader.close()
    return found


def test_every_member_of_an_odd_tar_is_a_row_or_is_counted(tmp_path):
    first = tar_of(
        ("./a.jpg", jpeg(1)),
        ("./cat/i.v1.jpg", jpeg(2)),
        ("./cat/i.v1.json", b'{"label": "tabby"}'),
        ("./cat/i.v2.jpg", jpeg(3)),
        ("./dog/link.jpg", "../cat/i.v2.jpg"),
        ("./dog/none.jpg", "/etc/hostname"),
        ("./._a.jpg", b"x"),
        ("./notes.txt", b""),
    )
    second = tar_of(("dog/4.jpg", jpeg(4)), ("__MACOSX/dog/._4.jpg", b"x"), ("loop", "."), ("tom", "cat"))
    (tmp_path / "both.tar").write_bytes(first + second)
    expected = {
        "a.jpg": (None, jpeg(1)),
        "cat/i.v1.jpg": ("tabby", jpeg(2)),
        "cat/i.v2.jpg": ("cat", jpeg(3)),
        "dog/4.jpg": ("dog", jpeg(4)),
        "dog/link.jpg": ("dog", jpeg(3)),
        "dog/none.jpg": ("dog", "cannot be read: a link out of the tar: /etc/hostname"),
        "tom/i.v1.jpg": ("tabby", jpeg(2)),
        "tom/i.v2.jpg": ("tom", jpeg(3)),
    }
    told = "Left out: 1 × a link to a folder above it (first: loop), 2 × hidden (first: ._a.jpg), 1 × no image name (first: notes.txt)."
    for _ in range(2):  # the same command again, which finds all done
        code, stderr = shard(tmp_path / "both.tar", tmp_path / "out")
        assert (code, stderr.splitlines()[-1]) == (0, told)
        assert rows(tmp_path / "out") == expected
    corpus = json.loads((tmp_path / "out" / "corpus.json").read_bytes())
    assert corpus["skipped"] == 1
    assert corpus["left_out"] == [
        {"kind": "a link to a folder above it", "entries": 1, "first": "loop"},
        {"kind": "hidden", "entries": 2, "first": "._a.jpg"},
        {"kind": "no image name", "entries": 1, "first": "notes.txt"},
    ]


def test_a_corpus_with_nothing_left_out_is_written_as_ever(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.jpg").write_bytes(jpeg(1))
    code, stderr = shard(tmp_path / "c", tmp_path / "out")
    assert (code, "eft out" in stderr) == (0, False)
    assert "left_out" not in json.loads((tmp_path / "out" / "corpus.json").read_bytes())


def test_what_early_versions_counted_is_still_told():
    assert left_out_text([], skipped=3) == "left out: 3 × no image name"
    assert left_out_text([]) == ""


def test_a_folder_of_odd_entries_ends_at_once(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(0))
    os.mkfifo(folder / "pipe.jpg")
    (folder / "self.jpg").symlink_to("self.jpg")
    assert shard(folder, tmp_path / "out")[0] == 0
    assert rows(tmp_path / "out") == {
        "a.jpg": (None, jpeg(0)),
        "pipe.jpg": (None, "cannot be read: a pipe, not a file"),
        "self.jpg": (None, "cannot be read: Too many levels of symbolic links"),
    }


def test_no_images_says_what_there_is(tmp_path):
    (tmp_path / "t.tar").write_bytes(tar_of(("._a.jpg", b""), ("notes.txt", b""), ("inner.tar", b"")))
    code, stderr = shard(tmp_path / "t.tar", tmp_path / "out")
    assert code == 1
    assert (
        "expected at least one image file, found 1 × hidden (first: ._a.jpg), 2 × no image name (first: inner.tar) [images-missing]."
        in stderr
    )


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_images_that_are_odd_inside(packed, tmp_path):
    """An odd field of metadata costs nothing; a thin image nothing; PostScript its own row."""
    files = {
        "a.jpg": jpeg(1),
        "exif.jpg": jpeg(2, (99, 88), exif=ODD_EXIF),
        "photo.jpg": POSTSCRIPT,
        "thin.png": png((1, 8_000_000)),
    }
    corpus = tmp_path / ("c.tar" if packed else "c")
    if packed:
        corpus.write_bytes(tar_of(*files.items()))
    else:
        corpus.mkdir()
        for name, data in files.items():
            (corpus / name).write_bytes(data)
    assert shard(corpus, tmp_path / "plain")[0] == 0
    no_image = (None, "not an image that Pillow reads")
    assert rows(tmp_path / "plain") == {
        **{name: (None, data) for name, data in files.items()},
        "photo.jpg": no_image,
    }
    assert shard(corpus, tmp_path / "small", "--resize", 16)[0] == 0
    small = rows(tmp_path / "small")
    assert small["photo.jpg"] == no_image
    assert small["thin.png"] == (None, files["thin.png"])
    sizes = {name: decode(data).size for name, (_, data) in small.items() if isinstance(data, bytes)}
    assert sizes == {"a.jpg": (19, 16), "exif.jpg": (16, 18), "thin.png": (1, 8_000_000)}
