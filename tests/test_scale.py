"""Any scale: what the driver holds does not grow with the corpus, and no pixels travel between processes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import teachonce
from PIL import Image
from teachonce.pipeline.board import Board
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location, scratch_file
from teachonce.pipeline.types import Stage, Unit
from teachonce.pipeline.worker import Outcome, Worker
from teachonce.stages.cache import plan_cache
from teachonce.stages.corpora.key_order import by_key
from teachonce.stages.corpora.manifest_file import open_manifest
from teachonce.stages.models.compute import Compute
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.manifest import Entry, write_manifest
from teachonce.storage_schemas.samples import sample_key

SMALL, TIMES, SHARD_SIZE = 100, 12, 50


class Elsewhere:
    """As on a cluster: everything that goes to a worker or comes back is pickled; the work itself is not measured."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def map(self, stage: Stage, ledger: Ledger, units: Iterable[Unit], board: Board) -> Iterator[Outcome]:
        measured = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        worker = Worker(*self._sent((stage, ledger)))
        outcomes = [self._sent(worker.run(self._sent(unit))) for unit in units]
        tracemalloc.start()
        self.before = measured
        yield from outcomes

    def _sent(self, value):
        data = pickle.dumps(value)
        self.sizes.append(len(data))
        return pickle.loads(data)


def draw(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.fromarray(np.full((8, 8, 3), index % 251, np.uint8)).save(folder / f"{index:06d}.png")
    return folder


def peak(work) -> tuple[int, Elsewhere]:
    """Largest memory (bytes) that Python and numpy held in the driver, and what went to workers and back."""
    elsewhere = Elsewhere()
    tracemalloc.start()
    try:
        work(elsewhere)
        return max(elsewhere.before, tracemalloc.get_traced_memory()[1]), elsewhere
    finally:
        tracemalloc.stop()


def with_room_for_names() -> list[str]:
    """Let Python's table of interned strings grow, which takes megabytes at once: parts of paths go there, and would be measured.

    Returns:
        The strings that filled it; to be kept.
    """
    kept: list[str] = []
    tracemalloc.start()
    try:
        before = after = 0
        while after - before < 1 << 20:
            before = tracemalloc.get_traced_memory()[0]
            kept.append(sys.intern(f"a name of {len(kept)}"))
            after = tracemalloc.get_traced_memory()[0]
        return kept
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_driver_holds_no_more_for_more_images(tmp_path):
    """`shard` and `cache` on 100 and on 1,200 images, as a driver runs them: in a process of its own, where no other thread works."""
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, (peaks, largest) in json.loads(done.stdout).items():
        few, many = peaks
        # paths, which are as long as the folder's: about a hundred bytes an image; a decoded image is 192 bytes
        assert many - few < 140 * (TIMES - 1) * SMALL, (name, few, many)
        assert abs(largest[1] - largest[0]) < 64, largest
        # fewer bytes than the pixels of one batch, so there are none among them
        assert max(largest) < 16_384


def measure(folder: Path) -> dict[str, tuple[list[int], list[int]]]:
    """By stage: the driver's peak memory, and the largest message to or from a worker, both for few and for many images."""
    import open_clip  # noqa: F401  # what imports take is not what the corpus takes
    import zarr  # noqa: F401

    teacher = TeacherConfig(model=f"local-dir:{Path(teachonce.__file__).parent / 'stages/demo/teacher'}")
    compute = Compute(device="cpu", precision="fp32", threads=1)
    found: dict[str, tuple[list[int], list[int]]] = {"shard": ([], []), "cache": ([], [])}

    def shard(executor, images, name):
        stage = plan_shard(
            [str(images)], out=str(folder / f"shards-{name}"), settings=ShardSettings(shard_size=SHARD_SIZE)
        )
        run_stage(stage, stage.out, executor, progress=False)

    def cache(executor, images, name):
        stage = plan_cache(
            str(folder / f"shards-{name}"),
            teacher,
            out=str(folder / f"store-{name}"),
            views=ViewSpec(kind="random_resized_crop", count=2),
            settings=CacheSettings(targets="embedding", encoding="fp16", batch_size=64),
            compute=compute,
        )
        run_stage(stage, stage.store, executor, progress=False)

    warm = draw(folder / "warm", 10)
    for work in (shard, cache):
        work(SerialExecutor(), warm, "warm")
    names = with_room_for_names()
    for count in (SMALL, TIMES * SMALL):
        images = draw(folder / f"images-{count}", count)
        for work in (shard, cache):
            held, elsewhere = peak(lambda executor, w=work, i=images, n=count: w(executor, i, f"{n:04d}"))
            found[work.__name__][0].append(held)
            found[work.__name__][1].append(max(elsewhere.sizes))
    del names
    return found


def test_sorting_a_manifest_takes_no_more_memory_for_more_entries(tmp_path):
    """Arrow's memory, for 2,000 entries and for 20,000, of which 500 may be held."""
    peaks = []
    for count in (2_000, 20_000):
        entries = [
            Entry(
                key=sample_key("n", f"{i}"),
                path=f"{i:040d}.jpg",
                source=0,
                offset=-1,
                size=i,
                digest="d" * 32,
                label="l",
            )
            for i in range(count)
        ]
        with (tmp_path / "draft").open("wb") as file:
            write_manifest(file, [entries[i : i + 50] for i in range(0, count, 50)])
        system, counting = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
        pa.set_memory_pool(counting)
        try:
            with scratch_file(Location.of(tmp_path)) as scratch:
                rows = by_key(open_manifest(Location.of(tmp_path), None, "draft"), count, scratch, rows_at_once=500)
                assert sum(1 for _ in rows) == count
        finally:
            pa.set_memory_pool(system)
        peaks.append(counting.max_memory())
    assert peaks[1] < 1.5 * peaks[0], peaks


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
