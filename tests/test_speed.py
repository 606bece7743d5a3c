"""Guards against large losses of speed: work of teachonce against plain loops that do the same, in processor time.

Each bound is half of what is usually reached (docs/performance.md), each ratio the median of pairs that alternate within this
process, and the best of a few tries counts. So a machine that is busy does not fail it, and a path that became
twice as slow does.
"""

from __future__ import annotations

import importlib
import itertools
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.cache import plan_cache
from teachonce.stages.models.compute import Compute
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.teachers import TeacherConfig, load_teacher
from teachonce.stages.views.spec import ViewSpec

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

IMAGES, SHARD_SIZE, BATCH, SIZE, VIEWS = 128, 64, 32, 224, 2

#: Pairs of a measurement, and measurements of which one must reach the bound.
PAIRS, TRIES = 2, 3


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The benchmarks' modules, which are no package and are not installed."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield SimpleNamespace(
            **{name: importlib.import_module(name) for name in ("corpora", "harness", "shard", "stores")}
        )
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def corpus(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = bench.corpora.draw(tmp_path_factory.mktemp("speed") / "images", IMAGES, width=300, height=200)
    return found


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other by spinning take processor time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reaches(bench: Any, bound: float, ours: Callable[[], Any], plain: Callable[[], object]) -> None:
    """Processor time of the plain loop by that of ours (its cost) is at least `bound`, in one of a few measurements."""
    measured: list[float] = []
    for _ in range(TRIES):
        found = bench.harness.pairs(ours, lambda: bench.harness.cost(plain), PAIRS)
        measured.append(statistics.median(theirs.cpu / mine.cpu for mine, theirs in found))
        if measured[-1] >= bound:
            return
    pytest.fail(f"expected at least {bound} of the plain loop's speed, found {', '.join(f'{m:.2f}' for m in measured)}")


def test_shards_are_written_at_half_the_speed_of_a_bare_loop(bench: Any, corpus: Path, tmp_path: Path) -> None:
    """Usually 0.7: the manifest, with every file read twice, is part of it."""
    many = tmp_path / "many"
    for copy in range(8):
        shutil.copytree(corpus, many / str(copy))

    def work() -> None:
        settings = ShardSettings(shard_size=8 * SHARD_SIZE)
        stage = plan_shard([str(many)], out=str(tmp_path / "shards"), settings=settings)
        run_stage(stage, stage.out, SerialExecutor(), progress=False)

    def ours() -> Any:
        shutil.rmtree(tmp_path / "shards", ignore_errors=True)
        return bench.harness.cost(work)

    def plain() -> None:
        shutil.rmtree(tmp_path / "bare", ignore_errors=True)
        bench.shard.bare_loop(many, tmp_path / "bare")

    reaches(bench, 0.4, ours, plain)


def test_the_stream_has_half_the_speed_of_decoding_and_rendering(bench: Any, corpus: Path, tmp_path: Path) -> None:
    """Usually 0.9: order, join and labels cost little beside Pillow."""
    shards, store = tmp_path / "shards", tmp_path / "store"
    bench.stores.make_shards(corpus, shards, shard_size=SHARD_SIZE)
    bench.stores.make_store(shards, store, views=VIEWS, threads=1)
    samples = bench.stores.samples_of(shards, store)
    room_VCHW = np.empty((1, 3, SIZE, SIZE), np.uint8)
    views = itertools.cycle(range(VIEWS))

    def plain() -> None:
        view = next(views)
        for sample in samples:
            bench.stores.decode_and_render(sample, [view], room_VCHW)

    with TargetStream(shards, store, image_size=SIZE, batch_size=BATCH) as stream:

        def epoch() -> None:
            assert sum(len(batch.rows_N) for batch in stream) == IMAGES

        reaches(bench, 0.5, lambda: bench.harness.cost(epoch), plain)


def test_caching_has_half_the_speed_of_its_parts(bench: Any, corpus: Path, tmp_path: Path) -> None:
    """Usually 0.75 of decoding and rendering and a small teacher's forward pass alone; without planning."""
    shards = tmp_path / "shards"
    bench.stores.make_shards(corpus, shards, shard_size=SHARD_SIZE)
    config = TeacherConfig(model=bench.stores.SMALL_TEACHER, pretrained="random")
    compute = Compute(device="cpu", precision="fp32", threads=1)
    numbers = itertools.count()

    def planned() -> Any:
        return plan_cache(
            str(shards),
            config,
            out=str(tmp_path / f"store{next(numbers)}"),
            views=ViewSpec(kind="random_resized_crop", count=VIEWS),
            settings=CacheSettings(targets="embedding", batch_size=BATCH),
            compute=compute,
        )

    def ours() -> Any:
        stage = planned()
        return bench.harness.cost(lambda: run_stage(stage, stage.store, SerialExecutor(), progress=False))

    first = planned()
    run_stage(first, first.store, SerialExecutor(), progress=False)
    samples, teacher = bench.stores.samples_of(shards, first.store.path), load_teacher(config)
    size, together = teacher.spec.preprocess.size, BATCH // VIEWS

    def plain() -> None:
        with compute.inference():
            for start in range(0, IMAGES, together):
                room_NVCHW = np.empty((together, VIEWS, 3, size, size), np.uint8)
                for sample, room_VCHW in zip(samples[start : start + together], room_NVCHW, strict=True):
                    bench.stores.decode_and_render(sample, list(range(VIEWS)), room_VCHW)
                teacher.embed(torch.from_numpy(room_NVCHW.reshape(-1, 3, size, size)))

    reaches(bench, 0.35, ours, plain)
