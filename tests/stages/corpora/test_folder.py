"""A folder as a corpus: which files are found, in which order, and what each costs that is odd. A tar of it is the same."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from teachonce.stages.corpora import folder as folder_module
from teachonce.stages.corpora.images import BadImage
from teachonce.stages.corpora.names import is_hidden_name, is_image_name
from teachonce.stages.inputs.image_set import open_images
from teachonce.stages.inputs.sources import open_sources
from teachonce.storage_schemas.errors import Unreachable


def found(corpus) -> dict:
    (source,) = open_sources([str(corpus)])
    return {found.path: found for found in source.walk() if found.is_image}


def left_out(corpus) -> list[tuple[str, str]]:
    (source,) = open_sources([str(corpus)])
    return [(found.path, found.left_out) for found in source.walk() if not found.is_image]


def contents(corpus) -> dict[str, bytes | str]:
    """The bytes of each image, or why it has none."""
    (source,) = open_sources([str(corpus)])
    return {
        f.path: source.read(f.path, f.offset, f.size) if f.problem is None else f.problem
        for f in source.walk()
        if f.is_image
    }


def put(root: Path, *names: str) -> Path:
    """Files whose bytes are their names."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.fsencode(name))
    return root


def test_folders_come_in_bytewise_order_of_full_paths(tmp_path):
    images = ["b/1.jpg", "a/z.jpg", "a.jpg", "a-b/1.JPG", "a/b/c.png", "ü/1.webp", "B.jpeg", "x.jpg/1.jpg"]
    put(tmp_path, *images, "notes.txt", ".hidden/1.jpg")
    assert list(found(tmp_path)) == sorted(images, key=lambda n: n.encode())
    labels = {path: found.label for path, found in found(tmp_path).items()}
    assert (labels["a/b/c.png"], labels["a.jpg"], labels["x.jpg/1.jpg"]) == ("b", None, "x.jpg")
    assert left_out(tmp_path) == [(".hidden", "hidden"), ("notes.txt", "no image name")]


@pytest.mark.parametrize(
    ("path", "image"),
    [
        ("a.jpg", True),
        ("c/a.JPEG", True),
        ("a.v1.png", True),
        ("...jpg", True),
        ("x.jpg/a.txt", False),
        ("jpg", False),
        (".jpg", False),
        ("c.jpg/.jpg", False),
        ("a.", False),
        ("a.jpg.txt", False),
        ("a.jpg ", False),
    ],
)
def test_names_of_images(path, image):
    assert is_image_name(path) is image


def test_names_of_what_tools_keep_for_themselves():
    hidden = [".DS_Store", "._x.jpg", "__MACOSX", ".ipynb_checkpoints", ".", "...jpg"]
    assert [name for name in [*hidden, "..", "x.jpg", "_x.jpg", "__MACOSX.jpg"] if is_hidden_name(name)] == hidden


def test_entries_that_are_no_files_cost_their_rows_and_are_never_opened(tmp_path):
    put(tmp_path, "a.jpg")
    for name in ("pipe.jpg", "pipe"):
        os.mkfifo(tmp_path / name)
    listener = socket.socket(socket.AF_UNIX)
    before = Path.cwd()
    try:
        os.chdir(tmp_path)  # a socket's path is short
        listener.bind("socket.jpg")
    finally:
        os.chdir(before)
        listener.close()
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "none.jpg").symlink_to("nowhere")
    (tmp_path / "below.jpg").symlink_to("a.jpg/b.jpg")
    (tmp_path / "long.jpg").symlink_to("n" * 300)
    reasons = {
        "below.jpg": "Not a directory",
        "long.jpg": "File name too long",
        "none.jpg": "No such file or directory",
        "pipe.jpg": "a pipe, not a file",
        "self.jpg": "Too many levels of symbolic links",
        "socket.jpg": "a socket, not a file",
        "zero.jpg": "a device, not a file",
    }
    expected = {"a.jpg": b"a.jpg", **{path: f"cannot be read: {reason}" for path, reason in reasons.items()}}
    assert contents(tmp_path) == expected
    assert left_out(tmp_path) == [("pipe", "no image name"), ("self", "no image name")]
    pictures = {picture.path: picture for picture in open_images(str(tmp_path)).pictures()}
    assert pictures["a.jpg"].read() == b"a.jpg"
    for path, reason in reasons.items():
        with pytest.raises(BadImage, match=f"^cannot be read: {reason}$"):
            pictures[path].read()


def test_names_that_are_not_utf8_cost_their_rows(tmp_path):
    put(
        tmp_path,
        "caf\udce9.jpg",
        "b\udcff/1.jpg",
        "b\udcff/c/2.jpg",
        "b\udcff/1.txt",
        "caf\u00e9.jpg",
        "z\udce9.jpg",
        "z\\xe9.jpg",
    )
    problem = "cannot be read: its name is not UTF-8"
    assert contents(tmp_path) == {
        "b\\xff/1.jpg": problem,
        "b\\xff/c/2.jpg": problem,
        "caf\\xe9.jpg": problem,
        "café.jpg": "café.jpg".encode(),
        "z\\xe9.jpg": b"z\\xe9.jpg",
    }
    assert left_out(tmp_path) == [
        ("b\\xff/1.txt", "no image name"),
        ("z\\xe9.jpg", "another entry has its path"),
    ]
    assert list(found(tmp_path)) == sorted(found(tmp_path), key=str.encode)


READ = """
import sys
from teachonce.stages.inputs.sources import open_sources
(source,) = open_sources(sys.argv[1:])
sys.stdout.write(ascii([(f.path, f.label, source.read(f.path, f.offset, f.size)) for f in source.walk()]))
"""


def test_a_folder_is_the_same_in_every_locale(tmp_path):
    put(tmp_path, "ö/ü.jpg")
    locale = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }  # file names are ASCII, says this one
    run = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, **locale},
    )
    assert run.stdout == ascii([("ö/ü.jpg", "ö", "ö/ü.jpg".encode())]), run.stderr


def test_a_path_longer_than_systems_take_costs_its_row(tmp_path):
    put(tmp_path, "a.jpg", "z.jpg")
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(20):  # deeper than one path can say
            Path("d" * 250).mkdir()
            os.chdir("d" * 250)
            Path("1.jpg").write_bytes(b"x")
    finally:
        os.chdir(before)
    told = contents(tmp_path)
    read = [path for path, content in told.items() if content == b"x"]
    assert {told.pop(path) for path in read} == {b"x"}
    assert [path for path, content in told.items() if content == path.encode()] == ["a.jpg", "z.jpg"]
    assert set(told.values()) <= {b"a.jpg", b"z.jpg", "cannot be read: File name too long"}
    assert 14 <= len(read) <= 16
    assert len(told) + len(left_out(tmp_path)) >= 3


def test_what_a_folder_cannot_list_at_the_moment_is_said(tmp_path, monkeypatch):
    """Who runs this may list everything, so the system is made to refuse."""
    put(tmp_path, "a/1.jpg", "b/1.jpg", "c/1.jpg")
    scandir = os.scandir

    def refuses(path):
        if path.endswith(b"/b") or not (tmp_path / "a").exists():
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(folder_module.os, "scandir", refuses)
    assert contents(tmp_path) == {
        "a/1.jpg": b"a/1.jpg",
        "b": "unreachable: Permission denied",
        "c/1.jpg": b"c/1.jpg",
    }
    pictures = {picture.path: picture for picture in open_images(str(tmp_path)).pictures()}
    with pytest.raises(Unreachable) as error:
        pictures["b"].read()
    assert (error.value.code, str(error.value.where), str(error.value.found)) == (
        "unreachable-now",
        "b",
        "Permission denied",
    )
    assert error.value.hint is not None
    (tmp_path / "a").rename(tmp_path / "d")
    with pytest.raises(Unreachable) as error:
        found(tmp_path)
    assert (error.value.code, str(error.value.found)) == ("unreachable-now", "Permission denied")
    assert error.value.where is not None
    assert error.value.hint is not None


def test_links_to_folders_are_followed_once_and_so_far(tmp_path):
    put(tmp_path, "a/1.jpg", "12/1.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to("a")
    for i in range(12):
        (tmp_path / f"{i:02d}").mkdir()
        for side in "ab":
            (tmp_path / f"{i:02d}" / side).symlink_to(f"../{i + 1:02d}")
    images = found(tmp_path)
    assert [path for path in images if not path[0].isdigit()] == ["a/1.jpg", "b/1.jpg"]
    assert images["b/1.jpg"].label == "b"
    assert len(images) == 2 + 1001
    kinds = [kind for _, kind in left_out(tmp_path)]
    assert kinds.count("a link to a folder above it") == 2
    assert "a folder that too many links lead to" in kinds


@pytest.mark.parametrize("top", [".", "/data/photos", "./"])
@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_of_a_folder_is_the_folder(format_, top, tmp_path):
    """Paths, labels, bytes, reasons and what is left out, whatever lies there."""
    root = put(
        tmp_path / "photos",
        "a.jpg",
        "cat/1.jpg",
        "cat/1.v2.png",
        "cat.jpg",
        "cat-b/x.webp",
        "dog/deep/er/2.gif",
        "ü/ö.jpg",
        "notes.txt",
        "cat/notes.txt",
        ".DS_Store",
        "cat/._1.jpg",
        "__MACOSX/cat/1.jpg",
        ".ipynb_checkpoints/a.jpg",
        "..odd.jpg",
        "x.jpg/1.jpg",
        "caf\udce9/1.jpg",
        "b\udcff.jpg",
        "l" * 120 + "/" + "n" * 200 + ".jpg",
        "later/z.jpg",
    )
    (root / "empty").mkdir()
    os.link(root / "cat/1.jpg", root / "dog/same.jpg")
    for name, target in {
        "dog/link.jpg": "../cat/1.jpg",
        "dog/link.txt": "../cat/1.jpg",
        "tom": "cat",
        "dog/tom": "../tom",
        "loop": ".",
        "dog/up": "..",
        "self.jpg": "self.jpg",
        "early.jpg": "later/z.jpg",
        "to-hidden.jpg": "cat/._1.jpg",
        "nowhere": "none",
    }.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe.jpg")
    tar = tmp_path / "photos.tar"
    with tarfile.open(tar, "w", format=format_) as archive:
        archive.add(root, arcname=top)
    prefix = "data/photos/" if top.startswith("/") else ""
    (source,) = open_sources([str(tar)])
    for what in (
        contents,
        lambda corpus: {path: f.label for path, f in found(corpus).items()},
        lambda c: dict(left_out(c)),
    ):
        expected = {prefix + path: value for path, value in what(root).items()}
        got = what(tar)
        if prefix:
            expected |= {path: "photos" for path, value in expected.items() if value is None}
        assert got == expected
    assert [f.path for f in source.walk()] == [prefix + path for path in _paths(root)]
    assert len(found(root)) > 20


def _paths(root: Path) -> list[str]:
    (source,) = open_sources([str(root)])
    return [found.path for found in source.walk()]
