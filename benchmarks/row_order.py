"""Rows in the order of the keys' hashes against rows in the sources' order: classes in a batch, and time to write the tars."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from corpora import draw
from harness import Bench, Cost, Line, cost, pairs, rate, slownesses

SHARD_SIZE, BATCH_SIZE = 1000, 64
CLASSES, IMAGES_A_CLASS = 200, 500
IMAGES_READ = 20_000
ORDERS = ("hash", "source")


def run(bench: Bench) -> Iterator[Line]:
    """Distinct classes in a batch; then the tars alone, from a folder and from a tar that are not in memory."""
    name = f"{CLASSES} classes of {IMAGES_A_CLASS}, drawn"
    corpus = draw(bench.scratch / "classes", CLASSES * IMAGES_A_CLASS, width=32, height=32, per_folder=IMAGES_A_CLASS)
    hashed, source = (classes_in_a_batch(corpus, bench.scratch / order, order) for order in ORDERS)
    yield Line(
        what=f"classes in a batch of {BATCH_SIZE}, hash by source",
        corpus=name,
        ratios=[hashed / source],
        note=f"{hashed:.1f} and {source:.1f}",
    )
    shutil.rmtree(corpus)
    folder = draw(bench.scratch / "images", IMAGES_READ, width=300, height=200)
    tar = bench.scratch / "images.tar"
    with tarfile.open(tar, "w") as file:
        for path in sorted(folder.rglob("*.jpg")):
            file.add(path, path.relative_to(folder))
    for what, images in (("a folder", folder), ("a tar", tar)):
        hashed_tars, source_tars = (_writer(images, bench.scratch / order, order) for order in ORDERS)
        found = pairs(hashed_tars, source_tars, bench.repeats)
        wall, cpu = slownesses(found)
        rates = (rate(IMAGES_READ, [pair[i] for pair in found]) for i in range(2))
        yield Line(
            what=f"time of the tars of {what}, hash by source",
            corpus=f"{IMAGES_READ} drawn 300x200",
            ratios=wall,
            cpu_ratios=cpu,
            note=" and ".join(rates),
        )


def classes_in_a_batch(corpus: Path, out: Path, order: str) -> float:
    """The mean over an epoch."""
    from teachonce.stages.corpora.manifest_file import open_manifest
    from teachonce.stages.pairs.order import EpochOrder, window_shards
    from teachonce.stages.settings.shard import ShardSettings
    from teachonce.stages.shard import plan_shard

    settings = ShardSettings(shard_size=SHARD_SIZE, order=order)  # type: ignore[arg-type]
    stage = plan_shard([str(corpus)], out=str(out), settings=settings)
    labels = [label for _, label in open_manifest(stage.out, stage.corpus).labels()]
    classes_N = np.unique(labels, return_inverse=True)[1]
    rows_per_shard = np.array([len(stage.corpus.rows(shard)) for shard in range(stage.corpus.num_shards)])
    epoch = EpochOrder(seed=0, epoch=0, rows_per_shard=rows_per_shard, window=window_shards(rows_per_shard))
    shards_N, positions_N = epoch.samples(0, epoch.num_samples)
    read_N = classes_N[shards_N * SHARD_SIZE + positions_N]
    batches = np.split(read_N, range(BATCH_SIZE, len(read_N), BATCH_SIZE))
    shutil.rmtree(out)
    return float(np.mean([len(np.unique(batch)) for batch in batches if len(batch) == BATCH_SIZE]))


def _writer(images: Path, out: Path, order: str):  # type: ignore[no-untyped-def]
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.stages.settings.shard import ShardSettings
    from teachonce.stages.shard import plan_shard

    def write() -> Cost:
        shutil.rmtree(out, ignore_errors=True)
        stage = plan_shard([str(images)], out=str(out), settings=ShardSettings(shard_size=SHARD_SIZE, order=order))  # type: ignore[arg-type]
        _forget(images)
        return cost(lambda: run_stage(stage, stage.out, SerialExecutor(), progress=False))

    return write


def _forget(images: Path) -> None:
    """Ask the system to drop the files' pages from memory."""
    for path in images.rglob("*.jpg") if images.is_dir() else [images]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
