"""Job arrays and schedulers: slices that end with the bytes of one run, and signals that say stop."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SLICES = 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for i in range(41):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize((160, 120), Image.Resampling.BICUBIC).save(folder / f"{i:03d}.jpg")
    (folder / "bad.jpg").write_bytes(b"")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "timings" not in p.parts
    }


@pytest.fixture
def start(python):
    return lambda *words, **options: python.start("-m", "teachonce", *words, **options)


def ends(process, code: int = 0) -> str:
    assert process.wait() == code, process.stderr
    return process.stderr


def shard(corpus: Path, out: Path) -> tuple[object, ...]:
    return ("shard", corpus, "--out", out, "--shard-size", 3)


def cache(shards: Path, out: Path) -> tuple[object, ...]:
    teacher = ("--teacher", "timm:test_vit", "--teacher-pretrained", "random")
    return (
        "cache",
        shards,
        *teacher,
        "--views",
        2,
        "--threads",
        1,
        "--decode-workers",
        0,
        "--batch-size",
        2,
        "--out",
        out,
    )


@pytest.fixture
def shards(corpus, start, tmp_path) -> Path:
    ends(start(*shard(corpus, tmp_path / "shards"), "--executor", "serial"))
    return tmp_path / "shards"


@pytest.mark.slow
def test_slices_end_with_the_bytes_of_one_run(corpus, shards, start, tmp_path) -> None:
    """Side by side, from nothing; one is killed and run again, another is run once more for nothing."""
    for words, whole, out in (
        (shard(corpus, tmp_path / "sliced"), shards, tmp_path / "sliced"),
        (cache(shards, tmp_path / "s.zarr"), tmp_path / "whole.zarr", tmp_path / "s.zarr"),
    ):
        if whole != shards:
            ends(start(*cache(shards, whole), "--executor", "serial"))
        parts = [start(*words, "--slice", f"{i}/{SLICES}") for i in range(SLICES)]
        receipts = out / "ledger" / str(words[0]) / "receipts"
        while parts[1].poll() is None and not any(receipts.glob("*.json")):
            time.sleep(0.002)
        parts[1].kill()
        parts[1].wait()
        for i in (0, 2):
            assert f", slice {i}/{SLICES}: " in ends(parts[i])
        (receipts / "000004.json").unlink(missing_ok=True)  # work is left, however fast this machine is
        line = ends(start(*words, "--finish"), 1).splitlines()[-1]
        assert line.startswith(f"Error: {words[0]} is not finished: {out}: expected 14 units, found ")
        assert "[stage-unfinished]. Next: run the slices again that have them" in line
        ends(start(*words, "--slice", f"1/{SLICES}"))
        assert "5 of 5 units done, 5 of them before" in ends(start(*words, "--slice", f"0/{SLICES}"))
        assert "14 of 14 units done, 14 of them before" in ends(start(*words, "--finish"))
        assert tree(out) == tree(whole)


def test_verify_in_slices_looks_at_everything_once(shards, start, tmp_path) -> None:
    store = tmp_path / "s.zarr"
    ends(start(*cache(shards, store), "--executor", "serial"))
    (chunk,) = store.glob("embedding/c/4/*/*")
    data = bytearray(chunk.read_bytes())
    data[20] ^= 4
    chunk.write_bytes(data)
    parts = [start("verify", shards, store, "--slice", f"{i}/{SLICES}") for i in range(SLICES)]
    codes = [part.wait() for part in parts]
    assert sorted(codes) == [0, 0, 3]
    lines = [part.stdout.splitlines()[-1] for part in parts]
    assert sum(int(line.partition(" rows")[0].rpartition(" ")[2]) for line in lines) == 42
    assert [f"slice {i}/{SLICES}" in line for i, line in enumerate(lines)] == [True] * SLICES


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--slice", "3/3"), "no slice: --slice: expected I/N with 0 ≤ I < N, such as 0/16 to 15/16, found 3/3"),
        (("--slice", "0/3", "--finish"), "--finish comes after all slices: --slice, --finish"),
        (("--slice", "0/3", "--grow"), "--grow is not done in slices: --grow, --slice"),
    ],
)
def test_what_slices_cannot_be(start, tmp_path, words, line) -> None:
    if "--grow" in words:
        (tmp_path / "s.zarr").mkdir()
    stderr = ends(start(*cache(tmp_path / "none", tmp_path / "s.zarr"), *words), 1)
    assert line in stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_what_is_at_hand_finish_and_says_go_on(shards, start, tmp_path, number) -> None:
    words = (*cache(shards, tmp_path / "s.zarr"), "--executor", "serial")
    receipts = tmp_path / "s.zarr" / "ledger" / "cache" / "receipts"
    process = start(*words, "--grace", 600)
    while not any(receipts.glob("*.json")):
        assert process.poll() is None, process.stderr
        time.sleep(0.002)
    process.send_signal(number)
    stderr = ends(process, 75)
    assert stderr.splitlines()[-1] == f"Stopped by {number.name}. What was finished is kept; the same command resumes."
    assert f"{number.name}: finishing what is at hand, for at most 600 s" in stderr
    assert not list((tmp_path / "s.zarr").rglob("*.tmp*")), "nothing was given up"
    done = len(list(receipts.glob("*.json")))
    assert 0 < done < 14
    assert f"14 of 14 units done, {done} of them before" in ends(start(*words))


def test_without_grace_it_is_given_up(shards, start, tmp_path) -> None:
    words = (*cache(shards, tmp_path / "s.zarr"), "--executor", "serial")
    receipts = tmp_path / "s.zarr" / "ledger" / "cache" / "receipts"
    process = start(*words, "--grace", 0)
    while not any(receipts.glob("*.json")):
        assert process.poll() is None, process.stderr
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    stderr = ends(process, 75)
    assert stderr.splitlines()[-1] == "Stopped by SIGTERM. What was finished is kept; the same command resumes."
    ends(start(*words))
    ends(start(*cache(shards, tmp_path / "calm.zarr"), "--executor", "serial"))
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "calm.zarr")


def test_a_command_that_looks_at_its_inputs_stops_at_once(corpus, start, tmp_path) -> None:
    """There is nothing at hand yet that could be finished."""
    import os

    fifo = tmp_path / "list.txt"
    os.mkfifo(fifo)
    process = start("shard", fifo, "--out", tmp_path / "s", "--executor", "serial")
    with fifo.open("w"):  # now it reads
        process.send_signal(signal.SIGUSR1)
        assert process.wait() == 75
    assert process.stderr.splitlines()[-1].startswith("Stopped by SIGUSR1. ")
