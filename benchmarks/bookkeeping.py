"""Bookkeeping at scale: what a driver, `status` and a resumed command cost for 1 million and 10 million samples, on the disk and on an S3 server.

`python benchmarks/bookkeeping.py [SHARDS…]`: 1,000 and 10,000 shards of 1,000 samples where none are given. Images, tars and targets are
stand-ins of some bytes: what is measured is the manifest, the ledger and the looks at files. Each measurement is a process of its own, which tells its
seconds, processor seconds and largest memory. `--no-bucket` and `--no-manifest` leave out what takes long (the manifest of 10 million samples takes
minutes). `--paper` prints the figures of docs/scale.md for a billion images, by its formulas.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SHARD_SIZE = 1000

#: Files that a shard of a store has: keys, validity, view parameters, embedding, logits, their maxima.
ARRAYS = (
    "keys/c/{}/0",
    "valid/c/{}",
    "view_params/c/{}/0/0",
    "embedding/c/{}/0/0",
    "logits/c/{}/0/0",
    "logits_max/c/{}/0",
)

CONTENT = b"a stand-in for what a shard has\n"

PHASES = ("manifest", "drive", "resume", "half", "status of shards", "status of store", "shard of manifest")

#: In a bucket; the first time nothing is packed.
FAR = ("resume", "resume", "status of store")


@dataclass(frozen=True)
class Made:
    """A source of made-up images."""

    count: int
    name = "made"

    def walk(self):
        from teachonce.stages.corpora.source import SourceFile

        for i in range(self.count):
            yield SourceFile(
                path=f"class-{i // 10_000:05d}/image-{i % 10_000:05d}.jpg", size=18, label=f"class-{i // 10_000:05d}"
            )

    def read(self, path: str, offset: int, size: int) -> bytes:
        return path[-18:].encode()


def manifest(folder, shards: int) -> None:
    """Planning of `shard`: a manifest of so many thousand samples, in order of their keys."""
    from teachonce.stages.corpora.corpus import freeze_corpus
    from teachonce.stages.corpora.corpus_sources import first_sources

    freeze_corpus(
        first_sources([Made(shards * SHARD_SIZE)]),
        folder / "shards",
        name=None,
        shard_size=SHARD_SIZE,
        resize=None,
        max_pixels=1000,
    )


@dataclass(frozen=True)
class StandIn:
    """A stage whose units take no time."""

    out: object
    shards: int
    name: str = "cache"
    workers = 64

    @property
    def fingerprint(self):
        from teachonce.storage_schemas.fingerprint import Fingerprint

        return Fingerprint(fields={"stand-in": self.name})

    @property
    def resources(self):
        from teachonce.pipeline.types import Resources

        return Resources()

    def plan(self):
        from teachonce.pipeline.types import Unit
        from teachonce.storage_schemas.samples import shard_name

        for shard in range(self.shards):
            yield Unit(key=shard_name(shard), rows=SHARD_SIZE, inputs={"shard": shard})

    def open(self):
        raise NotImplementedError

    def receipt(self, key: str):
        from teachonce.storage_schemas.receipt import InvalidRow, Output, Receipt

        names = [f"{key}.tar", f"{key}.index.npy"] if self.name == "shard" else [a.format(int(key)) for a in ARRAYS]
        outputs = tuple(
            Output(path=n, bytes=len(CONTENT), sha256=hashlib.sha256(n.encode()).hexdigest()) for n in names
        )
        bad = (InvalidRow(row=int(key) * SHARD_SIZE, path=f"class-00000/image-{key}.jpg", reason="empty file"),)
        return Receipt(
            key=key,
            outputs=outputs,
            rows=SHARD_SIZE,
            invalid_rows=bad,
            digest="0" * 32,
            fingerprint=self.fingerprint.digest,
        )

    def map(self, stage, ledger, units: Iterable, board) -> Iterator:
        """As an executor: units are done at once. What a worker writes is written without waiting for the disk."""
        from teachonce.pipeline.worker import Effort, outcome_of

        root, folder = Path(str(self.out)), Path(str(ledger.folder))
        for unit in units:
            receipt = self.receipt(unit.key)
            for output in receipt.outputs:
                path = root / output.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(CONTENT)
            seconds = {"read": 1.0, "decode": 20.25, "wait": 0.5, "forward": 9.125, "write": 0.25}
            (folder / "timings" / f"{unit.key}.json").write_text(json.dumps(seconds))
            (folder / "receipts" / f"{unit.key}.json").write_bytes(receipt.to_bytes())
            effort = Effort(
                node=f"node-{int(unit.key) % 8}",
                process=1,
                worker=f"cache worker {int(unit.key) % 64}",
                began=0.0,
                took=10.0,
                seconds=seconds,
                bytes_written=100,
            )
            yield outcome_of(receipt, effort)


def stage_of(folder, name: str, shards: int):
    return StandIn(folder / ("shards" if name == "shard" else "store.zarr"), shards, name)


def drive(folder, shards: int) -> None:
    """A whole run of `shard` and one of `cache`, by a worker that takes no time."""
    from teachonce.pipeline.runner import run_stage

    (folder / "store.zarr" / "zarr.json").write_bytes(
        b'{"zarr_format": 3, "node_type": "group", "attributes": {"teachonce": {"kind": "target store", "schema_version": 1}}}'
    )
    for name in ("shard", "cache"):
        stage = stage_of(folder, name, shards)
        assert run_stage(stage, stage.out, stage, progress=False).done_now == shards


def resume(folder, shards: int) -> None:
    """The same command again: nothing is left."""
    from teachonce.pipeline.runner import run_stage

    stage = stage_of(folder, "cache", shards)
    assert run_stage(stage, stage.out, stage, progress=False).done_before == shards


def half(folder, shards: int) -> None:
    """The same where half of the receipts are gone: up to the first unit that is handed out."""
    from teachonce.pipeline.runner import StageRun

    stage = stage_of(folder, "cache", shards)
    run = StageRun(stage, stage.out)
    assert next(run.left()).key == f"{shards // 2:06d}"


def status(folder, name: str) -> None:
    from teachonce.stages.status import folder_status, status_text

    facts = folder_status(folder / name)
    assert facts["state"] == "complete", facts["state"]
    status_text(facts)


def shard_of_manifest(folder, shards: int) -> None:
    """What each unit of `cache` reads of the manifest: 20 shards' entries, after the first."""
    from teachonce.stages.corpora.shards import ShardSet

    found = ShardSet(folder / "shards")
    for shard in range(min(shards, 20)):
        assert len(found.manifest().shard(shard)) == SHARD_SIZE


def phase(name: str, place: str, shards: int) -> None:
    """One measurement, in this process."""
    import teachonce.stages.status  # noqa: F401  # what imports take is not what is measured
    from teachonce.pipeline.storage import Location

    folder = Location.of(place)
    if name == "shard of manifest":
        from teachonce.stages.corpora.shards import ShardSet

        ShardSet(folder / "shards").manifest()  # the footer, once in a process
    began, cpu = time.perf_counter(), time.process_time()
    if name.startswith("status"):
        status(folder, "shards" if name.endswith("shards") else "store.zarr")
    else:
        {"manifest": manifest, "drive": drive, "resume": resume, "half": half, "shard of manifest": shard_of_manifest}[
            name
        ](folder, shards)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print()
    print(json.dumps({"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "MiB": most / 1024}))


def measure(name: str, place: str, shards: int, **variables: str) -> dict[str, float]:
    words = [sys.executable, __file__, "--phase", name, place, str(shards)]
    done = subprocess.run(words, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@contextlib.contextmanager
def server(root: Path) -> Iterator[tuple[dict[str, str], int]]:
    """A server with this folder in it: the environment for its clients, and its process id."""
    script = Path(__file__).parent / "standin" / "loaded_s3.py"
    process = subprocess.Popen([sys.executable, script, root], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("Running on ").strip()
        keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}
        yield {**keys, "AWS_ENDPOINT_URL": address}, process.pid
    finally:
        process.kill()
        process.wait()


def requests(environment: dict[str, str]) -> int:
    with urllib.request.urlopen(f"{environment['AWS_ENDPOINT_URL']}/requests") as answer:
        return sum(json.load(answer).values())


def seconds_of(process: int) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def on_disk(folder: Path, shards: int, phases: Iterable[str]) -> Iterator[tuple[str, dict[str, float]]]:
    (folder / "store.zarr").mkdir(parents=True)
    (folder / "shards").mkdir()
    receipts = folder / "store.zarr" / "ledger" / "cache" / "receipts"
    lost = [receipts / f"{shard:06d}.json" for shard in range(shards // 2, shards)]
    for name in phases:
        for path in lost if name == "half" else ():
            path.rename(f"{path}.old")
        yield name, measure(name, str(folder), shards)
        for path in lost if name == "half" else ():
            Path(f"{path}.old").rename(path)


def in_bucket(folder: Path, shards: int) -> Iterator[tuple[str, dict[str, float]]]:
    with server(folder / "store.zarr") as (environment, process):
        for number, name in enumerate(FAR):
            before, cpu = requests(environment), seconds_of(process)
            found = measure(name, "s3://bench", shards, **environment)
            found |= {"requests": requests(environment) - before, "server's cpu": seconds_of(process) - cpu}
            yield f"s3: {name}{', not packed yet' if number == 0 else ''}", found


def main(options: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bookkeeping-") as scratch:
        for shards in options.shards:
            folder = Path(scratch) / str(shards)
            own = [name for name in PHASES if options.manifest or "manifest" not in name]
            sources = [on_disk(folder, shards, own), *([in_bucket(folder, shards)] if options.bucket else [])]
            for name, figures in (pair for source in sources for pair in source):
                found.setdefault(name, []).append(figures)
                print(f"{shards:>8} {name:<32}", *(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)
    for name, runs in found.items():
        if len(runs) > 1:
            ratios = {key: runs[-1][key] / max(runs[0][key], 1e-9) for key in runs[0]}
            print(f"{'ratio':>8} {name:<32}", *(f"{key} {value:.3g}" for key, value in ratios.items()))


#: Measured: bytes of the manifest a sample, and of its footer a shard; of a receipt of a shard and of a store with six arrays; of timings; of
#: a tar's index a sample. Kibibytes of memory a shard: of a driver or `status`, and of the manifest's footer in each process that reads it.
MANIFEST, FOOTER, RECEIPTS, TIMINGS, INDEX = 46, 918, (490, 960), 76, 60
DRIVER_KIB, FOOTER_KIB = (0.45, 1.4), 13

#: Dollars for a thousand requests that write or list, and that read, as large providers have them.
WRITE, READ = 0.005, 0.0004

#: Bytes of an image, of a part of an upload, and of a view's targets (fp16, 768 channels).
IMAGE, PART, VIEW = 110_000, 8 << 20, 1536


def paper(images: int = 10**9, views_a_day: int = 400_000_000) -> None:
    """The table of docs/scale.md."""
    print(
        f"{images:,} images, one view each; {views_a_day:,} views a day: {views_a_day / 86400:,.0f} a second, {images / views_a_day:.1f} days"
    )
    for size in (1_000, 10_000):
        shards = images // size
        parts = -(-size * IMAGE // PART) + 2
        print(f"shards of {size:,}: {shards:,}")
        for what, value in (
            ("objects of shards (tar, index, receipt, timings)", 4 * shards),
            ("objects of the store (6 chunks, receipt, timings)", 8 * shards),
            ("packs", 2 * shards / 1000),
            ("requests to write all of them", (parts + 3 + 8) * shards),
            ("… in dollars", (parts + 3 + 8) * shards / 1000 * WRITE),
            ("requests of `status` of the store, or to resume", 7 * shards / 1000 + shards / 1000 + 60),
            ("… in dollars", (7 * shards / 1000) / 1000 * WRITE + shards / 1e6 * READ),
            ("manifest, GB", images * MANIFEST / 1e9),
            ("its footer, MB", shards * FOOTER / 1e6),
            ("… in the memory of each process that reads it, GB", shards * FOOTER_KIB / 1e6),
            ("receipts and timings, MB", shards * (sum(RECEIPTS) + 2 * TIMINGS) / 1e6),
            ("indexes, GB", images * INDEX / 1e9),
            ("memory of a driver, local, MB", shards * DRIVER_KIB[0] / 1e3),
            ("memory of a driver, bucket, MB", shards * DRIVER_KIB[1] / 1e3),
        ):
            print(f"  {what:<55} {value:,.6g}")
    print(f"tars {images * IMAGE / 1e12:,.0f} TB, targets {images * VIEW / 1e12:,.2f} TB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--phase"]:
        phase(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("shards", nargs="*", type=int)
        parser.add_argument("--no-bucket", dest="bucket", action="store_false")
        parser.add_argument("--no-manifest", dest="manifest", action="store_false")
        parser.add_argument("--paper", action="store_true")
        given = parser.parse_args()
        given.shards = given.shards or [1_000, 10_000]
        paper() if given.paper else main(given)
