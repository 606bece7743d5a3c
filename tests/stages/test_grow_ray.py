"""Growth on a real local Ray: the bytes of growth in one process, whatever grows, also where a worker dies."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from teachonce.pipeline.storage import Location
from teachonce.stages.pairs.store import read_generations

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SERIAL = ("--executor", "serial")


def draw(folder: Path, numbers: range) -> Path:
    folder.mkdir(exist_ok=True)
    for i in numbers:
        pixels = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((60, 40), Image.Resampling.BICUBIC).save(folder / f"{i:03d}.png")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "timings" not in p.parts
    }


def test_whatever_grows_has_the_bytes_of_one_process(run, cluster, tiny_clip_teacher, tmp_path):
    teacher = ("--teacher", f"local-dir:{tiny_clip_teacher}")
    (tmp_path / "classes.txt").write_text("red fox\nBlue_Jay\nhouse-cat\n")
    (tmp_path / "more.txt").write_text("zebra\nant\n")
    on_ray = ("--executor", "ray", "--ray-address", cluster.address, "--workers", 2)
    stores = {tmp_path / "serial.zarr": SERIAL, tmp_path / "ray.zarr": on_ray}

    def grow(command: str, *words: object) -> None:
        for store, where in stores.items():
            run(command, *words, *teacher, "--threads", 1, "--out", store, *where)

    cache = ("cache", tmp_path / "s", "--batch-size", 8)
    shard = ("shard", draw(tmp_path / "pictures", range(10)), "--name", "c", "--shard-size", 5, "--out", tmp_path / "s")
    run(*shard, *SERIAL)
    first, *others = stores
    run("vectors", *teacher, "--classes", tmp_path / "classes.txt", "--out", first)
    run(*cache, *teacher, "--threads", 1, "--views", 2, "--targets", "both", "--out", first, *SERIAL)
    for store in others:
        shutil.copytree(first, store)
    draw(tmp_path / "pictures", range(10, 17))
    run(*shard, "--append", *SERIAL)
    grow(*cache, "--views", 4, "--targets", "tokens", "--encoding", "tokens=int8", "--grow")
    grow("vectors", "--classes", tmp_path / "more.txt", "--grow")
    serial, ray = (tree(store) for store in stores)
    assert serial == ray
    generations = read_generations(Location.of(tmp_path / "ray.zarr"))
    grown = [generations.described[name].growth for name in generations.finished[1:]]
    assert [growth.what for growth in grown if growth is not None] == ["images", "views", "targets", "classes"]


def test_a_growth_whose_worker_is_killed_ends_with_the_same_bytes(start, run, cluster_to_kill_in, tmp_path):
    def cache(store: Path, *words: object) -> tuple[object, ...]:
        teacher = ("--teacher", "timm:test_vit", "--teacher-pretrained", "random", "--batch-size", 1)
        return ("cache", tmp_path / "s", *teacher, "--threads", 1, "--out", store, *words)

    shards = ("--name", "c", "--shard-size", 5, "--out", tmp_path / "s")
    run("shard", draw(tmp_path / "pictures", range(60)), *shards, *SERIAL)
    calm, killed = tmp_path / "calm.zarr", tmp_path / "killed.zarr"
    for store in (calm, killed):
        run(*cache(store, "--views", 1, *SERIAL))
    run(*cache(calm, "--views", 3, "--grow", *SERIAL))
    receipts = killed / "ledger" / "cache.2" / "receipts"
    on_ray = ("--executor", "ray", "--ray-address", cluster_to_kill_in.address, "--workers", 1)
    driver = start(*cache(killed, "--views", 3, "--grow", *on_ray))
    while len(list(receipts.glob("*.json"))) < 2:
        assert driver.poll() is None, driver.stderr[-2000:]
        time.sleep(0.01)
    workers = cluster_to_kill_in.workers()
    assert workers
    assert len(list(receipts.glob("*.json"))) < 12
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    assert driver.wait() == 0, driver.stderr[-2000:]
    assert tree(killed) == tree(calm)
