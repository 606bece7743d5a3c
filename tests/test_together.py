"""Pairs of commands started together on one output: one is done, whole; the other says why it is not. No byte is mixed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TEACHER = (
    "--teacher",
    "timm:test_resnet",
    "--teacher-pretrained",
    "random",
    "--threads",
    "1",
    "--executor",
    "serial",
)
STUDENT = (
    "--student",
    "timm:test_resnet",
    "--student-size",
    "32",
    "--recipe",
    "kd",
    "--epochs",
    "2",
    "--batch-size",
    "4",
    "--decode-workers",
    "0",
    "--threads",
    "1",
)


@pytest.fixture(scope="module")
def start(python):
    """A command that runs."""
    return lambda *words: python.start("-m", "teachonce", *words)


@pytest.fixture(scope="module")
def run(start):
    """A command to its end."""

    def one(*words: object) -> None:
        process = start(*words)
        assert process.wait() == 0, process.stderr

    return one


def contents(folder: Path) -> dict[str, bytes]:
    """All that is the same in every run; what a run says of its own time lies in timings and logs."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {"timings", "run"} & set(path.parts)
    }


@pytest.fixture(scope="module")
def made(run, tmp_path_factory) -> Path:
    """A folder with `photos`, `shards` of them, and `store` with class vectors and targets."""
    folder = tmp_path_factory.mktemp("together")
    rng = np.random.default_rng(0)
    for index in range(24):
        path = folder / "photos" / "abc"[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    run("shard", folder / "photos", "--shard-size", 6, "--executor", "serial", "--out", folder / "shards")
    run("vectors", *TEACHER, "--out", folder / "store")
    run("cache", folder / "shards", *TEACHER, "--out", folder / "store")
    return folder


def commands(made: Path, kind: str) -> list[tuple[object, ...]]:
    """Two commands for one output that differ in one option, or in none."""
    if kind == "shard":
        return [("shard", made / "photos", "--executor", "serial", "--shard-size", size) for size in (5, 7)]
    if kind == "cache":
        return [("cache", made / "shards", *TEACHER, "--views", 2, "--view-seed", seed) for seed in (1, 2)]
    if kind == "the same cache":
        return 2 * [("cache", made / "shards", *TEACHER, "--views", 2)]  # type: ignore[return-value]
    return 2 * [("distill", made / "shards", made / "store", *STUDENT)]  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shard", "cache", "the same cache", "distill"])
@pytest.mark.parametrize("turn", range(int(os.environ.get("TEACHONCE_PAIRS", "1"))))
def test_a_pair(kind: str, turn: int, made: Path, start, run, tmp_path: Path) -> None:
    pair = commands(made, kind)
    alone = []
    for number, words in enumerate(pair):
        run(*words, "--out", tmp_path / f"alone{number}" / "out")
        alone.append(contents(tmp_path / f"alone{number}" / "out"))
    out = tmp_path / "out"
    processes = [start(*words, "--out", out) for words in pair]
    errors = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert 0 in codes, errors
    assert "Traceback" not in "".join(errors)
    for code, error in zip(codes, errors, strict=True):
        if code:
            assert "another command is writing there" in error or "holds the output of another" in error
    assert contents(out) == alone[codes.index(0)]
    assert not (out / "ledger" / "driver.json").exists()
