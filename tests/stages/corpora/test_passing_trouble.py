"""Trouble that passes is recorded of no image: the work fails, the same command tries again, and ends with the same bytes."""

from __future__ import annotations

import errno
import filecmp
import http.server
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline import web
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.corpora import reading
from teachonce.stages.corpora.draft import DRAFT
from teachonce.stages.corpora.folder import FolderSource
from teachonce.stages.corpora.images import BadImage, probe
from teachonce.stages.corpora.reading import read_image
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.inputs.image_set import open_images
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.storage_schemas.errors import InputError, StorageError, UnitsFailed, Unreachable


def png(seed: int, side: int = 40) -> bytes:
    buffer = io.BytesIO()
    levels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


def teachonce(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr.splitlines()


def shard(corpus, out, *options):
    return teachonce("shard", corpus, "--out", out, "--name", "n", "--shard-size", 2, "--executor", "serial", *options)


def unusable(out) -> dict[str, str]:
    shards = ShardSet.open(str(out))
    receipts = map(shards.receipt, range(shards.corpus.num_shards))
    return {bad.path: bad.reason for receipt in receipts for bad in receipt.invalid_rows}


def assert_same(a: Path, b: Path) -> None:
    names = ["manifest.parquet", "corpus.json", *(f"00000{i}.tar" for i in range(3))]
    names += [f"ledger/shard/receipts/00000{i}.json" for i in range(3)]
    for name in names:
        assert filecmp.cmp(a / name, b / name, shallow=False), name


class Fails:
    def __init__(self, error):
        self.error = error

    def read(self, path, offset, size):
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "cannot be read: No such file or directory"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "cannot be read: File name too long"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "cannot be read: Not a directory"),
        (
            InputError("cannot read", code="url-unreadable", where="http://x", found="HTTP 404"),
            "cannot be read: cannot read: http://x: found HTTP 404",
        ),
        (ValueError("embedded null byte"), "cannot be read: ValueError: embedded null byte"),
    ],
)
def test_what_a_name_brings_about_is_of_the_image(error, reason):
    with pytest.raises(BadImage) as caught:
        read_image(Fails(error), "a.jpg", -1, 3)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.EMFILE, "Too many open files"),
        TimeoutError("timed out"),
        MemoryError(),
        Unreachable("cannot be read at the moment", code="unreachable-now", where="a.jpg", found="HTTP 503"),
    ],
)
def test_everything_else_is_of_the_moment(error):
    with pytest.raises(Unreachable, match=r"a\.jpg.*found"):
        read_image(Fails(error), "a.jpg", -1, 3)


def test_an_error_that_was_no_trouble_of_reading_stays_what_it_was():
    with pytest.raises(StorageError) as caught:
        read_image(Fails(StorageError("the disk is full", code="the-disk-is")), "a.jpg", -1, 3)
    assert not isinstance(caught.value, Unreachable)


@pytest.fixture
def site(monkeypatch):
    """A server of five images. `site.down` names those that it answers with 503; `site.asked` what it was asked for."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(web, "BACKOFF_SECONDS", 0.01)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip("/")
            server.asked.append(name)  # type: ignore[attr-defined]
            missing = not name.removesuffix(".png").isdigit()
            data = b"" if missing or name in server.down else png(int(name[0]))  # type: ignore[attr-defined]
            self.send_response(404 if missing else 503 if name in server.down else 200)  # type: ignore[attr-defined]
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.down, server.asked = set(), []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    web._client.cache_clear()


def web_list(folder: Path, site, extra=()) -> Path:
    folder.mkdir()
    names = [f"{i}.png" for i in range(5)]
    (folder / "list.txt").write_text(
        "\n".join(f"http://127.0.0.1:{site.server_port}/{name}" for name in [*names, *extra])
    )
    return folder / "list.txt"


def test_a_server_that_is_down_is_asked_again_by_the_same_command(site, tmp_path):
    corpus, out = web_list(tmp_path / "c", site, ["gone.png"]), tmp_path / "s"
    site.down = {"1.png", "3.png"}
    code, lines = shard(corpus, out)
    url = f"http://127.0.0.1:{site.server_port}/1.png"
    assert (code, lines[-1]) == (
        1,
        f"Error: 2 of 6 images cannot be read at the moment: the first is {url}: found HTTP 503 Service Unavailable [unreachable-now]. "
        "Next: run the same command again, or add --give-up-on-unreachable to leave such images out",
    )
    assert not list(out.glob("*.tar"))
    assert not (out / "corpus.json").exists()
    site.down = {"3.png"}
    site.asked.clear()
    assert shard(corpus, out)[0] == 1
    assert set(site.asked) == {"1.png", "3.png"}  # the others are known, and so is the one that is not there
    site.down = set()
    assert shard(corpus, out)[0] == 0
    gone = f"http://127.0.0.1:{site.server_port}/gone.png"
    assert unusable(out) == {gone: f"cannot be read: cannot read: {gone}: found HTTP 404 Not Found"}
    assert shard(corpus, tmp_path / "undisturbed")[0] == 0
    assert_same(out, tmp_path / "undisturbed")


def test_one_gives_up_on_purpose_and_for_good(site, tmp_path):
    corpus, out = web_list(tmp_path / "c", site), tmp_path / "s"
    site.down = {"1.png", "3.png"}
    assert shard(corpus, out)[0] == 1
    code, lines = shard(corpus, out, "--give-up-on-unreachable")
    assert code == 0
    assert f"Warning: 2 of 5 images cannot be used: 2 × unreachable. See `teachonce status {out}`." in lines
    recorded = {
        f"http://127.0.0.1:{site.server_port}/{name}": "unreachable: HTTP 503 Service Unavailable"
        for name in ("1.png", "3.png")
    }
    assert unusable(out) == recorded
    site.down = set()
    assert shard(corpus, out)[0] == 0
    assert unusable(out) == recorded


def test_a_server_that_goes_down_behind_the_manifest_fails_its_shards_alone(site, tmp_path):
    corpus, out = web_list(tmp_path / "c", site), tmp_path / "s"
    stage = plan_shard(
        [str(corpus)], out=str(out), settings=ShardSettings(name="n", shard_size=2, order="source")
    )  # keys hold the port
    site.down = {"2.png"}
    with pytest.raises(UnitsFailed) as caught:
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
    url = f"http://127.0.0.1:{site.server_port}/2.png"
    assert str(caught.value) == (
        f"1 of 3 units of shard failed, the first is 000001: cannot be read at the moment: {url}: found HTTP 503 "
        "Service Unavailable. Next: check the network and the server, then run the same command again, or add "
        "--give-up-on-unreachable to leave such images out"
    )
    assert sorted(p.name for p in out.glob("*.tar")) == ["000000.tar", "000002.tar"]
    code, _ = teachonce("status", out)
    assert code == 4
    site.down = set()
    assert shard(corpus, out)[0] == 0
    assert unusable(out) == {}
    assert shard(corpus, tmp_path / "undisturbed", "--order", "source")[0] == 0
    assert_same(out, tmp_path / "undisturbed")


def test_giving_up_behind_the_manifest(site, tmp_path):
    corpus, out = web_list(tmp_path / "c", site), tmp_path / "s"
    plan_shard([str(corpus)], out=str(out), settings=ShardSettings(name="n", shard_size=2))
    site.down = {"2.png"}
    assert shard(corpus, out, "--give-up-on-unreachable")[0] == 0
    assert list(unusable(out).values()) == ["unreachable: HTTP 503 Service Unavailable"]


def test_a_file_that_cannot_be_read_for_a_moment(tmp_path, monkeypatch):
    corpus, out = tmp_path / "c", tmp_path / "s"
    corpus.mkdir()
    for i in range(6):
        (corpus / f"{i}.png").write_bytes(png(i))
    read, broken = FolderSource.read, ["2.png"]

    def fails(self, path, offset, size):
        if path in broken:
            raise OSError(errno.EIO, "Input/output error", path)
        return read(self, path, offset, size)

    monkeypatch.setattr(FolderSource, "read", fails)
    code, lines = shard(corpus, out)
    assert code == 1
    assert "1 of 6 images cannot be read at the moment: the first is 2.png: found Input/output error" in lines[-1]
    images = {picture.path: picture for picture in open_images(str(corpus)).pictures()}
    with pytest.raises(Unreachable) as error:
        images["2.png"].read()
    assert (error.value.code, str(error.value.where)) == ("unreachable-now", "2.png")
    assert str(error.value.found).startswith("Input/output error")
    assert images["1.png"].read() == png(1)
    # Files here are read again each time: one that has changed meanwhile is what it now is.
    (corpus / "3.png").write_bytes(png(33))
    broken.clear()
    assert shard(corpus, out)[0] == 0
    assert shard(corpus, tmp_path / "undisturbed")[0] == 0
    assert_same(out, tmp_path / "undisturbed")


@pytest.mark.parametrize("order", ["hash", "source"])
def test_a_draft_serves_whatever_the_order(order, site, tmp_path):
    """In the sources' order it is the manifest itself, as it was in early versions."""
    corpus, out = web_list(tmp_path / "c", site), tmp_path / "s"
    site.down = {"1.png"}
    assert shard(corpus, out, "--order", order)[0] == 1
    site.asked.clear()
    assert shard(corpus, out)[0] == 1
    site.down = set()
    assert shard(corpus, out)[0] == 0
    assert site.asked.count("0.png") == 1  # by the tar, not by the manifests
    assert shard(corpus, tmp_path / "undisturbed")[0] == 0
    assert_same(out, tmp_path / "undisturbed")


def test_a_draft_that_is_damaged_is_no_loss(site, tmp_path):
    corpus, out = web_list(tmp_path / "c", site), tmp_path / "s"
    site.down = {"1.png"}
    assert shard(corpus, out)[0] == 1
    (out / DRAFT).write_bytes((out / DRAFT).read_bytes()[:-100])
    site.down = set()
    assert shard(corpus, out)[0] == 0
    assert unusable(out) == {}


LITTLE_MEMORY = """
import io, resource, sys
from PIL import Image
from teachonce.stages.corpora.images import BadImage, decode
from teachonce.storage_schemas.errors import Unreachable
def encoded(side, format_, **options):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (1, 2, 3)).save(buffer, format_, **options)
    return buffer.getvalue()
files = [encoded(2000, "JPEG", progressive=True), encoded(2000, "WEBP"), encoded(2000, "TIFF", compression="jpeg")]
small = encoded(100, "JPEG")
for data in files:
    decode(data)
pages = int(open("/proc/self/statm").read().split()[0])
soft = resource.getrlimit(resource.RLIMIT_AS)
for megabytes in range(2, 50, 3):
    for data in files:
        resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (megabytes << 20), soft[1]))
        try:
            decode(data)
            print("decoded")
        except Unreachable as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_AS, soft)
        decode(small)
        try:
            decode(small[:300])
        except BadImage as bad:
            assert str(bad) == "truncated image", bad
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on memory that holds")
def test_too_little_memory_is_no_fault_of_the_image():
    """Pillow's JPEG decoder says "broken data stream" when it gets none."""
    run = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY],
        capture_output=True,
        text=True,
        # Fixed, so that memory that was given back is not had again.
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert run.returncode == 0, run.stderr
    said = run.stdout.splitlines()
    assert set(said) == {
        "decoded",
        "out of memory: found not enough for this image. Next: free some memory, or use fewer workers or threads, "
        "then run the same command again",
    }


def test_memory_errors_fail_the_shard_and_name_the_image(tmp_path, monkeypatch):
    corpus, out = tmp_path / "c", tmp_path / "s"
    corpus.mkdir()
    for i in range(4):
        (corpus / f"{i}.png").write_bytes(png(i, 40 + i))

    def starved(data, *limits):
        if data == png(3, 43):
            raise MemoryError
        return probe(data, *limits)

    monkeypatch.setattr("teachonce.stages.samples.images.probe", starved)
    code, lines = shard(corpus, out)
    assert code == 1
    assert "1 of 2 units of shard failed, the first is 000001: out of memory: 3.png: found not enough" in lines[-1]
    monkeypatch.undo()
    assert shard(corpus, out)[0] == 0
    assert unusable(out) == {}


def test_a_file_that_cannot_be_looked_at_for_a_moment_is_no_other_corpus(tmp_path, monkeypatch):
    corpus, out = tmp_path / "c", tmp_path / "s"
    corpus.mkdir()
    for i in range(3):
        (corpus / f"{i}.png").write_bytes(png(i))
    (corpus / "list.txt").write_text("0.png\n1.png\n2.png\n")
    look = reading.look_at

    def fails(path):
        return (0, "unreachable: Input/output error") if os.fsdecode(path).endswith("1.png") else look(path)

    for source, module in ((corpus, "folder"), (corpus / "list.txt", "lists")):
        assert shard(source, out)[0] == 0
        monkeypatch.setattr(f"teachonce.stages.corpora.{module}.look_at", fails)
        code, lines = shard(source, out)
        assert (code, lines[-1]) == (
            1,
            "Error: cannot be read at the moment: 1.png: found Input/output error [unreachable-now]. "
            "Next: mend the cause, then run the same command again",
        )
        monkeypatch.undo()
        assert shard(source, out)[0] == 0
        out = tmp_path / "t"
