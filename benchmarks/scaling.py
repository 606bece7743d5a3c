"""Scaling of `cache` over Ray workers on one machine, with a stand-in teacher that takes a fixed time a batch and no core.

So what is measured is what lies around the teacher: the driver, the hand-out of units, decoding ahead, writing, receipts. A
real teacher needs a GPU a worker; here 8 workers may share 2 cores, since sleeping needs none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from corpora import draw
from harness import Bench, Line
from peer_process import command
from stores import fresh, make_shards

#: Workers that are compared with one.
WORKERS = 8

#: A batch's seconds, its images, and batches in a unit: a unit is one second of the teacher.
SECONDS, BATCH, BATCHES = 0.25, 16, 4

#: Units of one worker, and for each of several: those that start first take more while others still start.
UNITS = {1: 16, WORKERS: 22}

#: How many units a worker holds, as `CacheStage.resources` says.
AT_ONCE = 2


def run(bench: Bench) -> Iterator[Line]:
    """Units a second of 8 workers by 8 times those of one; and of each by the teacher's own pace."""
    packages = _installed(bench.scratch / "site")
    shards = {}
    for workers, units in UNITS.items():
        images = draw(bench.scratch / f"images{workers}", workers * units * BATCH * BATCHES, width=32, height=32)
        shards[workers] = bench.scratch / f"shards{workers}"
        make_shards(images, shards[workers], shard_size=BATCH * BATCHES)
    rates: dict[int, list[float]] = {workers: [] for workers in UNITS}
    for _ in range(bench.repeats):
        for workers in UNITS:
            store = fresh(bench.scratch / f"store{workers}.zarr")
            words = [sys.executable, "-m", "teachonce", "cache", str(shards[workers]), "--out", str(store)]
            words += ["--teacher", f"standin:{SECONDS}", "--targets", "embedding", "--encoding", "fp32"]
            words += ["--batch-size", str(BATCH), "--precision", "fp32", "--device", "cpu", "--threads", "1"]
            words += ["--decode-workers", "0", "--executor", "ray", "--workers", str(workers)]
            command(words, bench.scratch / f"cache{workers}.log", threads=1, packages=packages)
            rates[workers].append(steady_rate(store, workers))
            pace = rates[workers][-1] * SECONDS * BATCHES / workers
            print(f"scaling: {workers} workers at {pace:.3f} of the teacher's pace", file=sys.stderr, flush=True)
    ratios = [many / (WORKERS * one) for one, many in zip(rates[1], rates[WORKERS], strict=True)]
    yield Line(
        what=f"cache by Ray, {WORKERS} workers to {WORKERS} times one, units a second",
        corpus="drawn 32x32",
        ratios=ratios,
        at_least=0.92,
        note=f"a unit is {BATCHES} batches of {SECONDS} s; {os.cpu_count()} cores; start-up is apart",
    )
    for workers, found in rates.items():
        yield Line(
            what=f"cache by Ray, {workers} worker{'s' if workers > 1 else ''} to the teacher's own pace",
            corpus="drawn 32x32",
            ratios=[rate * SECONDS * BATCHES / workers for rate in found],
        )


def steady_rate(store: Path, workers: int) -> float:
    """Units a second while every worker was at work, by the times of the receipts.

    From when each worker had done its first unit (the driver hands the plan's first units out in turn, one to each), until no
    unit was left to hand out (each worker then still held as many as it holds at once).
    """
    receipts = store / "ledger" / "cache" / "receipts"
    done_at = {path.stem: path.stat().st_mtime for path in receipts.glob("*.json")}
    begin = max(done_at[key] for key in sorted(done_at)[:workers])
    times = sorted(done_at.values())
    end = times[-AT_ONCE * workers - 1]
    between = sum(begin < at <= end for at in times)
    if between < 4 * workers:
        raise RuntimeError(f"{workers} workers did {between} units together: too few to measure")
    return between / (end - begin)


def _installed(site: Path) -> str:
    """A folder of installed packages with the stand-in, as pip would lay it out; for PYTHONPATH."""
    info = site / "standin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: standin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[teachonce.teachers]\nstandin = standin_teacher:load\n")
    return os.pathsep.join([str(site), str(Path(__file__).parent / "standin")])
