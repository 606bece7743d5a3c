"""Full and read-only disks, Ctrl-C, and mistakes on the command line: one clear line each, and the same command resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """60 pictures of about 20 kB."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """A function that (re)mounts a file system of a given size, or read-only, and returns its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> Path:
        run = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
        if run.returncode != 0:
            pytest.skip(f"cannot mount here: {run.stderr.strip()}")
        return folder

    mount("-t", "tmpfs", "-o", "size=512k", "tmpfs")
    yield lambda options: mount("-o", f"remount,{options}")
    subprocess.run(["umount", str(folder)], check=True)


def teachonce(*arguments: object) -> tuple[int, list[str]]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr.splitlines()


@pytest.mark.skipif(os.getuid() != 0 or sys.platform != "linux", reason="mounting needs root on Linux")
def test_a_full_disk_keeps_what_is_done_and_a_read_only_one_starts_nothing(corpus, small_disk, tmp_path):
    out = tmp_path / "disk" / "out"
    command = ("shard", corpus, "--out", out, "--shard-size", 10, "--executor", "serial")
    code, lines = teachonce(*command)
    assert code == 1
    assert "units of shard failed" in lines[-1]
    assert "the disk is full" in lines[-1]
    assert not list(out.rglob("*.tmp"))
    done = {p: p.read_bytes() for p in out.glob("*.tar")}
    assert 0 < len(done) < 6
    small_disk("size=8m")
    assert teachonce(*command)[0] == 0
    assert len(list(out.glob("*.tar"))) == 6
    assert all(p.read_bytes() == data for p, data in done.items())
    small_disk("ro")
    code, lines = teachonce("shard", corpus, "--out", out.parent / "other", "--executor", "serial")
    assert (code, lines[-1]) == (
        1,
        f"Error: the file system is read-only: {out.parent / 'other'} [file-system-read-only]. Next: choose another --out",
    )


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_same_command_resumes(corpus, python, tmp_path):
    shards, store = tmp_path / "shards", tmp_path / "store"
    assert teachonce("shard", corpus, "--out", shards, "--shard-size", 4, "--executor", "serial")[0] == 0
    command = [
        "cache",
        shards,
        "--teacher",
        "timm:test_vit",
        "--teacher-pretrained",
        "random",
        "--views",
        8,
        "--threads",
        1,
        "--executor",
        "serial",
        "--out",
        store,
    ]
    process = python.start("-m", "teachonce", *command)
    receipts = store / "ledger" / "cache" / "receipts"
    while not any(receipts.glob("0*.json")):
        assert process.poll() is None, process.stderr
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "Interrupted. What was finished is kept; the same command resumes."
    assert "Traceback" not in errors
    before = len(list(receipts.glob("0*.json")))
    assert 0 < before < 15
    code, lines = teachonce(*command)
    assert code == 0
    assert lines[-1].startswith(f"cache: 15 of 15 units done, {before} of them before; ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("shard", "/nowhere", "--out", "{out}"),
            "Error: no such corpus: /nowhere [corpus-missing]. Next: check the path",
        ),
        (
            ("shard", "pipe:ls", "--out", "{out}"),
            "Error: pipe: runs a command from data and is refused: pipe:ls [pipe-refused]",
        ),
        (
            ("cache", "/nowhere", "--teacher", "timm:test_vit", "--teacher-pretrained", "random", "--out", "{out}"),
            "Error: no shards here: /nowhere: expected a folder of shards, found nothing [shards-missing]. Next: teachonce shard CORPUS --out /nowhere",
        ),
        (
            ("cache", "/nowhere", "--teacher", "x", "--out", "{out}", "--views", "many"),
            "Error: impossible number of views: --views: expected a number or `center`, found many [setting-impossible]",
        ),
        (
            ("vectors", "--teacher", "x", "--classes", "/nowhere", "--out", "{out}"),
            "Error: no such class list: /nowhere [class-list-missing]. Next: one name a line, a JSON list, `imagenet`, `coop:NAME=DATA`, or a folder of shards",
        ),
        (
            ("shard", "/nowhere", "--out", "{out}", "--executor", "serial", "--workers", "2"),
            "Error: no such corpus: /nowhere [corpus-missing]. Next: check the path",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, line, tmp_path):
    code, lines = teachonce(*(a.format(out=tmp_path / "out") for a in arguments))
    assert (code, lines) == (1, [line])
    assert not (tmp_path / "out").exists()


def test_a_deleted_working_folder_is_one_line(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (("status", tmp_path), ("models", "vit"), ("shard", tmp_path, "--out", tmp_path / "out")):
        assert teachonce(*words) == (
            1,
            ["Error: the working folder has been deleted [working-folder-deleted]. Next: cd to one that is there"],
        )


@pytest.mark.skipif(os.getuid() != 0, reason="root alone can become somebody else")
@pytest.mark.parametrize("what", ["store", "store/ledger", "store/ledger/shard/plan.json"])
def test_an_input_that_may_not_be_read_is_not_answered_by_another_output(corpus, what):
    # Not below pytest's folder, which is root's alone.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        out = Path(folder) / "store"
        assert teachonce("shard", corpus, "--out", out, "--executor", "serial")[0] == 0
        assert teachonce("status", out)[0] == 0  # and all modules are imported, which somebody else may not read
        (Path(folder) / what).chmod(0)
        os.seteuid(65534)
        try:
            code, lines = teachonce("status", out)
        finally:
            os.seteuid(0)
        assert (code, lines) == (
            1,
            [
                f"Error: no permission to read: {Path(folder) / what} [read-permission-denied]. Next: ask its owner, or: chmod u+rX {Path(folder) / what}"
            ],
        )


@pytest.fixture(scope="module")
def store(corpus, tmp_path_factory) -> tuple[Path, Path]:
    """Shards, and a store of them."""
    shards, store = (tmp_path_factory.mktemp("store") / name for name in ("shards", "store"))
    teacher = ("--teacher", "timm:test_vit", "--teacher-pretrained", "random", "--threads", 1, "--out", store)
    assert teachonce("shard", corpus, "--out", shards, "--executor", "serial")[0] == 0
    assert teachonce("vectors", *teacher)[0] == 0
    assert teachonce("cache", shards, *teacher, "--executor", "serial")[0] == 0
    return shards, store


#: The command with a /dev/shm that is full, which its processes have too: a container's has 64 MiB.
NO_SHARED_MEMORY = """
import ctypes, runpy, subprocess, sys
assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS
for mount in (["--make-rprivate", "none", "/"], ["-t", "tmpfs", "-o", "size=4k", "tmpfs", "/dev/shm"]):
    subprocess.run(["mount", *mount], check=True)
with open("/dev/shm/fill", "wb") as file:
    file.write(bytes(4096))
sys.argv = ["teachonce", *sys.argv[1:]]
runpy.run_module("teachonce", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or sys.platform != "linux", reason="mounting needs root on Linux")
def test_processes_that_decode_need_no_shared_memory_of_the_system(store, python, tmp_path):
    shards, targets = store
    teacher = ("--teacher", "timm:test_vit", "--teacher-pretrained", "random")
    student = ("--student", "timm:test_vit", "--recipe", "kd", "--epochs", 1, "--batch-size", 30)
    for words in (
        ("cache", shards, *teacher, "--executor", "serial", "--targets", "embedding", "--out", tmp_path / "store"),
        ("distill", shards, targets, *student, "--out", tmp_path / "student"),
    ):
        done = python.run("-c", NO_SHARED_MEMORY, *words, "--threads", 1, "--decode-workers", 2)
        assert done.returncode == 0, done.stderr
