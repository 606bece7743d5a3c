"""Peak memory of shard, cache and stream on n images and on ten times as many, in processes of their own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpora import draw
from harness import Bench, Line

#: Images of the smaller corpus. A shard holds 500, the stream's window up to 16,384 rows.
IMAGES, SHARD_SIZE = 2000, 500

#: Processes that decode, where there are any.
PROCESSES = 2

#: Rows of small and large shards for a target of 0.5 MB a row in fp16, and images.
SMALL_SHARD, LARGE_SHARD, MAP_IMAGES = 64, 512, 512


def run(bench: Bench) -> Iterator[Line]:
    """Images of 32x32 pixels, so that ten times as many are quickly done; three runs of each at most."""
    folders = {}
    for count in (IMAGES, 10 * IMAGES):
        folders[count] = bench.scratch / str(count)
        draw(folders[count] / "images", count, width=32, height=32, per_folder=500)
    for stage in ("shard", "cache", "cache in processes", "stream"):
        peaks: dict[int, list[int]] = {count: [] for count in folders}
        for turn in range(min(3, bench.repeats)):
            for count, folder in folders.items():
                peaks[count].append(_peak(stage, folder, turn, bench.threads))
        ratios = [large / small for small, large in zip(*peaks.values(), strict=True)]
        mib = [min(values) / 1024 for values in peaks.values()]
        note = f"{mib[0]:.0f} MiB for {IMAGES} images, {mib[1]:.0f} MiB for {10 * IMAGES}"
        yield Line(what=f"peak memory, {stage}", corpus="drawn 32x32", ratios=ratios, at_most=1.1, note=note)
    yield _large_target(bench)
    yield _views(bench, folders[IMAGES])
    found = [
        json.loads(_measure("loader", folders[10 * IMAGES], 0, bench.threads)) for _ in range(min(3, bench.repeats))
    ]
    yield Line(
        what="memory of a process that makes batches, last quarter of an epoch by the second",
        corpus="drawn 32x32",
        ratios=[last / second for second, last in found],
        at_most=1.05,
        note=f"{found[0][0] / 1024:.0f} and {found[0][1] / 1024:.0f} MiB of its own, {10 * IMAGES} images",
    )


def _large_target(bench: Bench) -> Line:
    """`cache` of maps: a shard of eight times the rows must take no more, since a block is written chunk by chunk."""
    folder = bench.scratch / "maps"
    draw(folder / "images", MAP_IMAGES, width=64, height=64, per_folder=500)
    peaks: dict[int, list[int]] = {SMALL_SHARD: [], LARGE_SHARD: []}
    for turn in range(min(3, bench.repeats)):
        for size, found in peaks.items():
            found.append(_peak(f"maps-{size}", folder, turn, bench.threads))
    small, large = (min(found) / 1024 for found in peaks.values())
    return Line(
        what="peak memory, cache of 0.5 MB a row, by rows of a shard",
        corpus="drawn 64x64",
        ratios=[b / a for a, b in zip(*peaks.values(), strict=True)],
        at_most=1.1,
        note=f"{small:.0f} MiB in shards of {SMALL_SHARD}, {large:.0f} MiB in shards of {LARGE_SHARD}; a shard's rows in fp32: "
        f"{LARGE_SHARD} MiB",
    )


def _views(bench: Bench, folder: Path) -> Line:
    """`cache` of 1 and of 8 views: as many views are decoded ahead."""
    peaks: dict[int, list[int]] = {1: [], 8: []}
    for turn in range(min(3, bench.repeats)):
        for views, found in peaks.items():
            found.append(_peak(f"views-{views}", folder, turn, bench.threads))
    few, many = (min(found) / 1024 for found in peaks.values())
    return Line(
        what="peak memory, cache in processes, 8 views by 1",
        corpus="drawn 32x32",
        ratios=[b / a for a, b in zip(*peaks.values(), strict=True)],
        at_most=1.1,
        note=f"{few:.0f} MiB for 1 view, {many:.0f} MiB for 8; 224 pixels",
    )


def _peak(stage: str, folder: Path, turn: int, threads: int) -> int:
    return int(_measure(stage, folder, turn, threads))


def _measure(stage: str, folder: Path, turn: int, threads: int) -> bytes:
    command = [sys.executable, __file__, stage, str(folder), str(turn), str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return done.stdout.splitlines()[-1]


def _main() -> None:
    """In the process that is measured: do the stage, print the peak of resident memory in KiB."""
    stage, folder, turn, threads = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    shards, store = folder / f"shards{turn}", folder / f"store{turn}"
    if stage == "loader":
        print(json.dumps(_loader(shards, store)))
        return
    if stage.startswith("maps-"):
        size = stage.removeprefix("maps-")
        _maps(
            folder / "images",
            folder / f"shards{size}-{turn}",
            folder / f"store{size}-{turn}",
            int(size),
            threads,
        )
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    others = [0]
    threading.Thread(target=_watch, args=(others,), daemon=True).start()
    if stage.startswith("views-"):
        _cache_in_processes(shards, folder / f"{stage}-{turn}", threads, views=int(stage.removeprefix("views-")))
    elif stage == "cache in processes":
        _cache_in_processes(shards, folder / f"processes{turn}", threads)
    else:
        {"shard": _shard, "cache": _cache, "stream": _stream}[stage](folder / "images", shards, store, threads)
    # What the others share with this one is part of its own.
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + max(others))


def _shard(images: Path, shards: Path, store: Path, threads: int) -> None:
    from stores import make_shards

    make_shards(images, shards, SHARD_SIZE)


def _cache(images: Path, shards: Path, store: Path, threads: int) -> None:
    """The demo's tiny open_clip teacher: 36 pixels, and wide enough to see targets pile up if they did."""
    import teachonce
    from teachonce.stages.teachers import TeacherConfig

    teacher = Path(teachonce.__file__).parent / "stages" / "demo" / "teacher"
    _run_cache(shards, store, TeacherConfig(model=f"local-dir:{teacher}"), threads)


def _cache_in_processes(shards: Path, store: Path, threads: int, views: int = 1) -> None:
    """timm's test_vit at 224 pixels: there the images decoded ahead take more than all else."""
    from teachonce.stages.teachers import TeacherConfig
    from teachonce.stages.views.spec import ViewSpec

    config = TeacherConfig(model="timm:test_vit", pretrained="random", size=224)
    spec = ViewSpec(kind="random_resized_crop", count=views)
    _run_cache(shards, store, config, threads, views=spec, decode_workers=PROCESSES)


def _run_cache(
    shards: Path, store: Path, teacher: Any, threads: int, *, views: Any = None, decode_workers: int = 0
) -> None:
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.stages.cache import plan_cache
    from teachonce.stages.models.compute import Compute
    from teachonce.stages.settings.cache import CacheSettings

    stage = plan_cache(
        str(shards),
        teacher,
        out=str(store),
        views=views,
        settings=CacheSettings(targets="embedding", encoding="fp16", batch_size=64),
        compute=Compute(device="cpu", precision="fp32", threads=threads, decode_workers=decode_workers),
    )
    run_stage(stage, stage.store, SerialExecutor(), progress=False)


def _maps(images: Path, shards: Path, store: Path, shard_size: int, threads: int) -> None:
    """The first map of timm's test_resnet at 176 pixels: 32 channels of 88 x 88, 0.5 MB in fp16."""
    from stores import make_shards
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.stages.cache import plan_cache
    from teachonce.stages.models.compute import Compute
    from teachonce.stages.settings.cache import CacheSettings
    from teachonce.stages.teachers import TeacherConfig

    make_shards(images, shards, shard_size)
    config = TeacherConfig(model="timm:test_resnet", pretrained="random", size=176)
    stage = plan_cache(
        str(shards),
        config,
        out=str(store),
        views=None,
        settings=CacheSettings(targets="features.act1", encoding="fp16", batch_size=64),
        compute=Compute(device="cpu", precision="fp32", threads=threads),
    )
    run_stage(stage, stage.store, SerialExecutor(), progress=False)


def _stream(images: Path, shards: Path, store: Path, threads: int) -> None:
    """Two epochs in this process."""
    from teachonce.pipeline.storage import Location
    from teachonce.stages.corpora.shards import ShardSet
    from teachonce.stages.pairs.stream import TargetStream

    with TargetStream(
        ShardSet.open(str(shards)),
        Location.of(store),
        image_size=36,
        batch_size=64,
        seed=0,
        targets=("embedding",),
        drop_last=False,
    ) as stream:
        for epoch in range(2):
            for _ in stream.batches(epoch):
                pass


def _loader(shards: Path, store: Path) -> tuple[int, int]:
    """Largest memory of its own (KiB: not the pages of mapped files) of one process that makes batches in two quarters of an epoch."""
    from teachonce import TargetStream

    quarters: list[list[int]] = [[], [], [], []]
    with TargetStream(shards, store, image_size=36, batch_size=64, targets=("embedding",), num_workers=1) as stream:
        for step, _ in enumerate(stream.batches(0)):
            pid = _children(_children(os.getpid())[0])[0]  # the one that decodes, below the one that starts such
            quarters[4 * step // stream.steps_per_epoch].append(_own(pid))
    return max(quarters[1]), max(quarters[3])


def _watch(found: list[int]) -> None:
    """Note how much memory of their own (KiB) the processes below this one have, 20 times a second."""
    while True:
        below = _children(os.getpid())
        found.append(sum(_own(pid) for child in below for pid in (child, *_children(child))))
        time.sleep(0.05)


def _own(pid: int) -> int:
    """KiB of a process that are no pages of files or shared memory."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _children(of: int) -> list[int]:
    parents = {
        int(p.parent.name): p.read_text().rpartition(")")[2].split()[1] for p in Path("/proc").glob("[0-9]*/stat")
    }
    return sorted(pid for pid, parent in parents.items() if int(parent) == of)


if __name__ == "__main__":
    _main()
