"""`kill -9` at random moments, the same command again: finished folders are byte-identical to an undisturbed run's.

`TEACHONCE_KILLS=100 pytest tests/test_kill.py` kills more often.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from teachonce.pipeline.storage import Location
from teachonce.stages.pairs.store import read_generations
from teachonce.stages.pairs.stream import TargetStream

KILLS = int(os.environ.get("TEACHONCE_KILLS", "4"))


@pytest.fixture
def spawn(python):
    return lambda *command: python.start("-m", "teachonce", *command)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Enough pictures for a run to take a while, more where there are more kills."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for i in range(30 * KILLS):
        image = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
            (160, 120), Image.Resampling.BICUBIC
        )
        image.save(folder / f"{i:03d}.jpg")
    (folder / "bad.jpg").write_bytes(b"")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "timings" not in p.parts
    }


def run(spawn, *command) -> None:
    process = spawn(*command)
    assert process.wait() == 0, process.stderr


def run_with_kills(spawn, receipts: Path, seed: int, *command) -> int:
    """Kill the command's process again and again, each time a few units further; then let it finish.

    Returns how often a running process was killed.
    """
    chance, kills = random.Random(seed), 0
    for attempt in range(KILLS):
        goal = len(list(receipts.glob("*.json"))) + (chance.randint(1, 3) if attempt else 0)
        process = spawn(*command)
        while process.poll() is None and len(list(receipts.glob("*.json"))) < goal:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.01))
        process.kill()
        kills += process.wait() < 0
    run(spawn, *command)
    return kills


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bytes(spawn, corpus, tmp_path):
    def shard(out):
        return ("shard", corpus, "--out", out, "--shard-size", 6, "--executor", "serial")

    def cache(out):
        return (
            "cache",
            tmp_path / "calm",
            "--teacher",
            "timm:test_vit",
            "--teacher-pretrained",
            "random",
            "--views",
            3,
            "--executor",
            "serial",
            "--threads",
            1,
            "--batch-size",
            32,
            "--out",
            out,
        )

    for command, calm, killed, seed in (
        (shard, tmp_path / "calm", tmp_path / "killed", 1),
        (cache, tmp_path / "calm.zarr", tmp_path / "killed.zarr", 2),
    ):
        run(spawn, *command(calm))
        receipts = killed / "ledger" / command.__name__ / "receipts"
        assert run_with_kills(spawn, receipts, seed, *command(killed)) >= 2
        assert tree(calm).keys() == tree(killed).keys()
        assert tree(calm) == tree(killed)


@pytest.mark.slow
def test_a_growth_that_was_killed_leaves_the_old_generation(spawn, corpus, tmp_path):
    def cache(out, *more):
        model = ("--teacher", "timm:test_vit", "--teacher-pretrained", "random", "--targets", "embedding")
        return ("cache", tmp_path / "shards", *model, "--executor", "serial", "--threads", 1, "--out", out, *more)

    run(spawn, "shard", corpus, "--out", tmp_path / "shards", "--shard-size", 6, "--executor", "serial")
    run(spawn, *cache(tmp_path / "killed.zarr", "--views", 1))
    shutil.copytree(tmp_path / "killed.zarr", tmp_path / "calm.zarr")
    old = tree(tmp_path / "killed.zarr")
    growth = ("--views", 3, "--grow")
    receipts = tmp_path / "killed.zarr" / "ledger" / "cache.2" / "receipts"
    process = spawn(*cache(tmp_path / "killed.zarr", *growth))
    while process.poll() is None and len(list(receipts.glob("*.json"))) < 3:
        time.sleep(0.002)
    process.kill()
    assert process.wait() < 0
    store = Location.of(str(tmp_path / "killed.zarr"))
    assert read_generations(store).finished == ["1"]
    with TargetStream(
        str(tmp_path / "shards"), str(store), image_size=32, batch_size=8, targets=("embedding",)
    ) as stream:
        assert (stream.num_views, len(list(stream))) == (1, stream.num_samples // 8)
    run(spawn, *cache(tmp_path / "killed.zarr", *growth))
    run(spawn, *cache(tmp_path / "calm.zarr", *growth))
    assert tree(tmp_path / "killed.zarr") == tree(tmp_path / "calm.zarr")
    assert read_generations(store).finished == ["1", "2"]
    chunks = {name: data for name, data in old.items() if "/c/" in name}
    assert {name: tree(tmp_path / "killed.zarr")[name] for name in chunks} == chunks
