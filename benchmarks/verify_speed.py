"""`verify --full` against a plain loop that reads every file once and hashes it: bytes a second and CPU, in one run.

python benchmarks/verify_speed.py SHARDS STORE [--repeats N]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.looking import look
from teachonce.stages.verify import plan_verify


def plain(shards: Path, store: Path) -> int:
    """Read every file that holds samples or targets, and hash it."""
    total = 0
    for folder in (shards, store):
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.suffix != ".json":
                hasher = hashlib.sha256()
                with file.open("rb") as opened:
                    while piece := opened.read(4 << 20):
                        hasher.update(piece)
                        total += len(piece)
                hasher.hexdigest()
    return total


def full(shards: Path, store: Path) -> int:
    stage, findings = plan_verify(str(shards), str(store))
    assert stage is not None
    assert not findings
    total = 0
    for outcome in look(stage, SerialExecutor(), stage.whole.store):
        assert not outcome.seen.findings, outcome.seen.findings
        total += outcome.seen.num_bytes
    return total


def timed(work: Callable[[], int]) -> tuple[float, float, int]:
    """(seconds, CPU seconds, bytes)."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    total = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    full(given.shards, given.store)  # imports, and the page cache
    runs = [
        (timed(lambda: plain(given.shards, given.store)), timed(lambda: full(given.shards, given.store)))
        for _ in range(given.repeats)
    ]
    ratios = [(a[2] and b[2] / b[0]) / (a[2] / a[0]) for a, b in runs]
    cpu = [b[1] / a[1] for a, b in runs]
    facts = {
        "bytes_read": {"plain": runs[0][0][2], "verify": runs[0][1][2]},
        "plain_MB_per_s": [round(a[2] / a[0] / 1e6) for a, _ in runs],
        "verify_MB_per_s": [round(b[2] / b[0] / 1e6) for _, b in runs],
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "cpu_ratio_median": round(statistics.median(cpu), 3),
    }
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
