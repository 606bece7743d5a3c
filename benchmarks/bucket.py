"""A bucket of an S3 server on loopback against a local folder: `cache`, the stream with a warm local cache, requests.

The server (moto's, in a process of its own) takes processor time of this machine too, which a cloud's does not; so the ratio on the
clock tells the worst, and that in processor time what this process does more.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from corpora import take
from harness import Bench, Cost, Line, cost, pairs, rate, speeds
from stores import SMALL_TEACHER, make_shards

#: Of a corpus of many shards: what opening asks for once is then little beside them.
MANY_SHARD_SIZE = 3

TESTS = Path(__file__).parents[1] / "tests"
MODEL, IMAGES, SHARD_SIZE, BATCH, SIZE, VIEWS = "timm:efficientnet_lite0", 240, 60, 32, 160, 2


def run(bench: Bench) -> Iterator[Line]:
    """Both by turns: the teacher's run onto a folder and onto a bucket, then epochs of pairs from each."""
    import torch

    torch.set_num_threads(bench.threads)
    for name, corpus in bench.corpora:
        own = bench.scratch / name.replace("/", "-")
        take(corpus, IMAGES, own / "images")
        make_shards(own / "images", own / "shards", SHARD_SIZE)
        with _server() as endpoint:
            far = _copy(own / "shards", "s3://bench/shards")
            turns = itertools.count()
            found = pairs(
                lambda far=far, t=turns: _cache(far, f"s3://bench/store{next(t)}", bench.threads),
                lambda own=own, t=turns: _cache(str(own / "shards"), str(own / f"store{next(t)}"), bench.threads),
                bench.repeats,
            )
            wall, cpu = speeds(found)
            note = f"{rate(IMAGES, [o for o, _ in found])}, on the disk {rate(IMAGES, [f for _, f in found])}"
            yield Line(
                what=f"cache, {MODEL}, shards and store in a bucket, by its local rate",
                corpus=name,
                ratios=wall,
                cpu_ratios=cpu,
                at_least=0.95,
                note=note,
            )
            yield from _streams(bench, name, own, endpoint)


def _streams(bench: Bench, name: str, own: Path, endpoint: str) -> Iterator[Line]:
    from teachonce.pipeline.storage import s3_endpoint
    from teachonce.stages.pairs.local_copies import LocalCache
    from teachonce.stages.pairs.stream import TargetStream

    sys.path.insert(0, str(TESTS))
    from object_proxy import Proxy

    options = {"image_size": SIZE, "batch_size": BATCH, "targets": ("embedding",), "drop_last": False}
    cache = LocalCache(folder=str(own / "copies"), gb=10)
    take(own / "images", IMAGES, own / "few-images")
    make_shards(own / "few-images", own / "many-shards", MANY_SHARD_SIZE)
    _cache(_copy(own / "many-shards", "s3://bench/many-shards"), "s3://bench/many", bench.threads, model=SMALL_TEACHER)
    with (
        Proxy(endpoint).running() as proxy,
        s3_endpoint(proxy.endpoint),
        TargetStream(
            "s3://bench/many-shards",
            "s3://bench/many",
            local_cache=LocalCache(folder=str(own / "few-copies"), gb=10),
            **options,  # type: ignore[arg-type]
        ) as stream,
    ):
        for _ in stream:
            pass
    wanted = (".tar", ".npy", "/c/", "/receipts/0")
    asked = [seen.path.partition("?")[0] for seen in proxy.seen if any(part in seen.path for part in wanted)]
    yield Line(
        what="requests an object, first epoch through a local cache",
        corpus=name,
        ratios=[len(asked) / len(set(asked))],
        at_most=1.2,
        note=f"{len(set(asked))} objects of {IMAGES // MANY_SHARD_SIZE} shards; {len(proxy.seen) - len(asked)} requests more to open",
    )
    folder = {"shards": str(own / "shards"), "store": str(own / "store1")}
    with (
        TargetStream("s3://bench/shards", "s3://bench/store0", local_cache=cache, **options) as warm,  # type: ignore[arg-type]
        TargetStream(folder["shards"], folder["store"], **options) as local,  # type: ignore[arg-type]
    ):
        found = pairs(lambda: _epoch(warm), lambda: _epoch(local), bench.repeats)
    wall, cpu = speeds(found)
    yield Line(
        what="stream, bucket with a warm local cache, by the local rate",
        corpus=name,
        ratios=wall,
        cpu_ratios=cpu,
        at_least=0.9,
        note=f"{rate(IMAGES, [o for o, _ in found])}, from the disk {rate(IMAGES, [f for _, f in found])}",
    )


def _epoch(stream: object) -> Cost:
    def read() -> None:
        for batch in stream:  # type: ignore[attr-defined]
            assert len(batch.rows_N)

    return cost(read)


def _cache(shards: str, store: str, threads: int, model: str = MODEL) -> Cost:
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.stages.cache import plan_cache
    from teachonce.stages.models.compute import Compute
    from teachonce.stages.settings.cache import CacheSettings
    from teachonce.stages.teachers import TeacherConfig
    from teachonce.stages.views.spec import ViewSpec

    stage = plan_cache(
        shards,
        TeacherConfig(model=model, pretrained="random"),
        out=store,
        views=ViewSpec(kind="random_resized_crop", count=VIEWS),
        settings=CacheSettings(targets="embedding", encoding="fp16", batch_size=BATCH),
        compute=Compute(device="cpu", precision="fp32", threads=threads),
    )
    return cost(lambda: run_stage(stage, stage.store, SerialExecutor(), progress=False))


def _copy(folder: Path, url: str) -> str:
    from teachonce.pipeline.storage import Location

    for name in Location.of(folder).entries(deep=True):
        (Location.of(url) / name).write_bytes((Location.of(folder) / name).read_bytes())
    return url


@contextlib.contextmanager
def _server() -> Iterator[str]:
    """A server with a bucket `bench`."""
    process = subprocess.Popen([sys.executable, TESTS / "s3_server.py"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        endpoint = process.stdout.readline().split()[-1]
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bench", method="PUT")).close()
        keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}
        with mock.patch.dict(os.environ, {**keys, "AWS_ENDPOINT_URL": endpoint}):
            yield endpoint
    finally:
        process.terminate()
        process.communicate()
