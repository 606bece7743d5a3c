"""Locations: atomic writes, what killed writers leave, and what is refused."""

from __future__ import annotations

import errno
import http.server
import os
import threading
from types import SimpleNamespace

import pytest
from teachonce.pipeline.storage import Location, as_storage_error
from teachonce.pipeline.user_files import UserFile, read_url
from teachonce.storage_schemas.errors import InputError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    location = Location.of(tmp_path / "a" / "b.bin")
    location.write_bytes(b"old")

    def fail() -> None:
        with location.create() as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert location.read_bytes() == b"old"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.bin"]


def test_only_our_own_and_zarrs_temporaries_are_swept(tmp_path):
    ours, zarrs = ".x.tar.0123abcd.tmp", "0." + "ab" * 16 + ".partial"
    kept = ["notes.tmp", ".hidden.tmp", "film.partial", "x.tar"]
    deep = tmp_path / "deep"
    deep.mkdir()
    for name in (ours, zarrs, *kept):
        (deep / name).touch()
    Location.of(tmp_path).remove_temporaries()
    assert sorted(p.name for p in deep.iterdir()) == sorted(kept)


def test_only_files_are_read_as_files_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "a.jpg").write_bytes(b"a")
    folder = UserFile.of(tmp_path)
    for read in (folder.read_below, lambda name: (folder / name).read_file()):
        assert read("a.jpg") == b"a"
        for name, line in {"pipe.jpg": "a pipe, not a file", "zero.jpg": "a device, not a file"}.items():
            with pytest.raises(InputError, match=f"^{line}$"):
                read(name)
        for name, code in {
            "self.jpg": errno.ELOOP,
            ".": errno.EISDIR,
            "a.jpg/b": errno.ENOTDIR,
            "x" * 300: errno.ENAMETOOLONG,
        }.items():
            with pytest.raises(OSError, match=rf"^\[Errno {code}\]"):
                read(name)


@pytest.mark.parametrize("resolve", [Location.of, UserFile.of])
def test_pipe_and_urls_are_refused_as_folders(resolve):
    with pytest.raises(InputError) as error:
        resolve("pipe:rm x")
    assert (error.value.code, str(error.value.where)) == ("pipe-refused", "pipe:rm x")
    with pytest.raises(InputError) as error:
        resolve("hdfs://b/k")
    assert (error.value.code, str(error.value.where), str(error.value.hint)) == (
        "place-not-local",
        "hdfs://b/k",
        "mount or copy it first",
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the file system is read-only"),
        (errno.ENAMETOOLONG, "a name is too long for a file or folder"),
        (errno.ELOOP, "a link that leads to itself"),
        (errno.EIO, "the disk, or the network behind it, gives an error"),
    ],
)
def test_disk_errors_become_one_line(number, text):
    error = as_storage_error(OSError(number, "x", "/some/file"))
    assert str(error).startswith(f"{text}: /some/file. Next: ")
    assert as_storage_error(OSError(errno.ENOENT, "x")) is None


@pytest.mark.parametrize(
    ("files", "free_files", "free_blocks", "code"),
    [
        (99, 0, 999, "disk-no-inodes"),
        (99, 2, 999, "disk-no-inodes"),
        (99, 50, 999, "disk-full"),
        (99, 0, 5, "disk-full"),
        (0, 0, 999, "disk-full"),
    ],
)
def test_a_disk_without_inodes_is_told_from_a_full_one(monkeypatch, tmp_path, files, free_files, free_blocks, code):
    real = os.statvfs

    def statvfs(path):
        real(path)
        return SimpleNamespace(f_files=files, f_favail=free_files, f_bavail=free_blocks, f_frsize=4096)

    monkeypatch.setattr(os, "statvfs", statvfs)
    error = as_storage_error(OSError(errno.ENOSPC, "x", str(tmp_path / "not" / "yet")))
    assert error is not None
    assert (error.code, error.where) == (code, str(tmp_path / "not" / "yet"))


def test_an_error_of_an_open_file_names_it(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    file = Location.of(tmp_path / "a.bin")
    file.write_bytes(b"x")
    monkeypatch.setattr("os.fsync", fails)
    monkeypatch.setattr("pathlib.Path.read_bytes", fails)
    for act in (file.read_bytes, file.sync, lambda: file.write_bytes(b"y")):
        with pytest.raises(OSError, match="Input/output") as error:
            act()
        assert error.value.filename == str(tmp_path / "a.bin")
    assert [at.name for at in tmp_path.iterdir()] == ["a.bin"]


def test_urls_are_read_through_a_real_server(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"content")
    handler = lambda *a: http.server.SimpleHTTPRequestHandler(*a, directory=str(tmp_path))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        assert read_url(f"{base}/a.bin") == b"content"
        with pytest.raises(InputError) as error:
            read_url(f"{base}/none.bin")
        assert (error.value.code, str(error.value.where)) == ("url-unreadable", f"{base}/none.bin")
        assert error.value.found is not None
        server.shutdown()


def test_ranges_end_where_the_file_does(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.bin").write_bytes(b"0123456789")
    location = UserFile.of(tmp_path / "below" / "a.bin")
    assert [location.read_range(3, size) for size in (0, 2, 7, 8)] == [b"", b"34", b"3456789", b"3456789"]
    assert location.read_range(10, 1) == b""
    assert UserFile.of(tmp_path).read_below("below/a.bin") == b"0123456789"
    with pytest.raises(FileNotFoundError):
        UserFile.of(tmp_path).read_below("below/b.bin")


def test_notes_replace_each_other_and_leave_nothing_behind(tmp_path):
    for text in (b"long", b"x"):
        Location.of(tmp_path / "notes" / "a.json").write_note(text)
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["a.json"]
    assert (tmp_path / "notes" / "a.json").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["nothing", "a.jpg/b", "x" * 300, "self.jpg", "n\0l"])
def test_names_that_no_file_can_have_are_not_there(name, tmp_path):
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "a.jpg").write_bytes(b"a")
    location, file = Location.of(tmp_path) / name, UserFile.of(tmp_path) / name
    assert (location.exists(), location.is_dir(), location.size()) == (False, False, None)
    assert (file.exists(), file.is_dir(), file.is_device(), file.size()) == (False, False, False, None)
