"""`shard` against a bare loop: read, webdataset's TarWriter, sha256, fsync, rename."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from corpora import files
from harness import Bench, Cost, Line, cost, pairs, rate, speeds

SHARD_SIZE = 1000


def run(bench: Bench) -> Iterator[Line]:
    """The stage with its manifest, and the writing of the tars alone."""
    import webdataset  # noqa: F401  (its import is nobody's writing)
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.stages.settings.shard import ShardSettings
    from teachonce.stages.shard import plan_shard

    for name, corpus in bench.corpora:
        out, bare = bench.scratch / f"{name}-shards", bench.scratch / f"{name}-bare"
        count = sum(1 for _ in files(corpus))
        parts: list[tuple[Cost, Cost]] = []

        def ours(corpus: Path = corpus, out: Path = out, parts: list[tuple[Cost, Cost]] = parts) -> Cost:
            shutil.rmtree(out, ignore_errors=True)
            stages = []
            manifest = cost(
                lambda: stages.append(
                    plan_shard([str(corpus)], out=str(out), settings=ShardSettings(shard_size=SHARD_SIZE))
                )
            )
            stage = stages[0]
            tars = cost(lambda: run_stage(stage, stage.out, SerialExecutor(), progress=False))
            parts.append((manifest, tars))
            return manifest + tars

        def floor(corpus: Path = corpus, bare: Path = bare) -> Cost:
            shutil.rmtree(bare, ignore_errors=True)
            return cost(lambda: bare_loop(corpus, bare))

        found = pairs(ours, floor, bench.repeats)
        tars = [(tar, other) for (_, tar), (_, other) in zip(parts[1:], found, strict=True)]
        floor_rate = rate(count, [f for _, f in found])
        for what, these in (("shard, manifest and tars", found), ("shard, tars alone", tars)):
            wall, cpu = speeds(these)
            note = f"{count} images: {rate(count, [o for o, _ in these])}, bare loop {floor_rate}"
            yield Line(what=what, corpus=name, ratios=wall, cpu_ratios=cpu, at_least=0.8, note=note)


class _HashedFile:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)


def bare_loop(corpus: Path, out: Path) -> None:
    """The obvious code for tars of images and metadata, synced to disk, with a checksum."""
    import webdataset

    out.mkdir()
    numbered = enumerate(files(corpus))
    for shard in itertools.count():
        samples = itertools.islice(numbered, SHARD_SIZE)
        first = next(samples, None)
        if first is None:
            return
        temporary = out / f"{shard:06d}.tar.tmp"
        with temporary.open("wb") as file:
            hashed = _HashedFile(file)
            writer = webdataset.TarWriter(hashed, mtime=0, encoder=False)
            for row, (path, data) in itertools.chain([first], samples):
                facts = {"digest": "0" * 32, "label": path.split("/")[0], "path": path, "row": row}
                text = json.dumps(facts, separators=(",", ":")).encode()
                writer.write({"__key__": f"{row:032d}", "jpg": data, "json": text})
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(out / f"{shard:06d}.tar")
        (out / f"{shard:06d}.sha256").write_text(hashed.sha256.hexdigest())
