"""`shard` against img2dataset on the same local files: whole commands, 2 workers each, from start to exit.

img2dataset reads `file://` addresses by the function with which it downloads. It is given what is fastest: no decoding, no
encoding (`disable_all_reencoding`), tars as output. teachonce checks that each image is complete, and freezes a manifest first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from corpora import files
from harness import Bench, Cost, Line, pairs, rate, speeds
from peer_process import command
from stores import fresh

#: Files of a measurement; fewer with TEACHONCE_BENCH_FILES, to try the benchmark.
FILES = int(os.environ.get("TEACHONCE_BENCH_FILES", "20000"))

SHARD_SIZE, WORKERS, THREADS = 1000, 2, 32


def run(bench: Bench) -> Iterator[Line]:
    """By Ray with two workers, which is the default; and with `--executor serial`, which is one."""
    python = bench.environments.python("img2dataset")
    version = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('img2dataset'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    for name, corpus in bench.corpora:
        own = bench.scratch / name.replace("/", "-")
        count = _multiply(corpus, own / "images")
        theirs = own / "img2dataset"
        urls = own / "urls.txt"
        urls.write_text("".join(f"{path.resolve().as_uri()}\n" for path in sorted((own / "images").rglob("*.*"))))
        arguments = {
            "url_list": urls,
            "output_folder": theirs,
            "output_format": "webdataset",
            "processes_count": WORKERS,
            "thread_count": THREADS,
            "number_sample_per_shard": SHARD_SIZE,
            "disable_all_reencoding": True,
            "resize_mode": "no",
        }
        words = [python, "-m", "img2dataset.main", *(f"--{key}={value}" for key, value in arguments.items())]

        def peer(words: list[str] = words, theirs: Path = theirs, own: Path = own, count: int = count) -> Cost:
            fresh(theirs)
            found = command(words, own / "img2dataset.log", threads=1)
            done = sum(json.loads(stats.read_text())["successes"] for stats in theirs.glob("*_stats.json"))
            assert done == count, f"img2dataset wrote {done} of {count} images"
            return found

        for how, options in (
            (f"Ray, {WORKERS} workers", ["--workers", str(WORKERS)]),
            ("one process", ["--executor", "serial"]),
        ):
            shards = own / "shards"
            mine = [sys.executable, "-m", "teachonce", "shard", str(own / "images"), "--out", str(shards)]
            mine += ["--shard-size", str(SHARD_SIZE), *options]

            def ours(mine: list[str] = mine, shards: Path = shards, own: Path = own) -> Cost:
                fresh(shards)
                return command(mine, own / "shard.log", threads=1)

            found = pairs(ours, peer, bench.repeats, warm=False)
            wall, cpu = speeds(found)
            ours_rate, peer_rate = (rate(count, [costs[i] for costs in found]) for i in (0, 1))
            yield Line(
                what=f"shard to img2dataset, 2 workers; shard by {how}",
                corpus=name,
                ratios=wall,
                # Ray's processes are not children of the command, so their processor time is not known.
                cpu_ratios=cpu if "serial" in options else (),
                at_least=5.0,
                note=f"{count} files: {ours_rate}, img2dataset {version} {peer_rate}",
            )


def _multiply(corpus: Path, folder: Path) -> int:
    """Write FILES files: the corpus's, each under as many names as it takes. Returns their number."""
    images = list(files(corpus))
    for number in range(FILES):
        path, data = images[number % len(images)]
        target = folder / str(number // len(images)) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return FILES
