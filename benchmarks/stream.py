"""The stream of pairs against decoding and rendering alone, in as many processes; and the join's share."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
from corpora import take
from harness import Bench, Line, cost, pairs, rate, speeds
from stores import Sample, decode_and_render, make_shards, make_store, samples_of

IMAGES, SHARD_SIZE, BATCH, SIZE, VIEWS = 2000, 1000, 64, 224, 2


def run(bench: Bench) -> Iterator[Line]:
    """No process beside this one, then two; then the stream without images: order, join, gather."""
    import torch
    from teachonce.pipeline.storage import Location
    from teachonce.stages.corpora.shards import ShardSet
    from teachonce.stages.pairs.stream import TargetStream

    torch.set_num_threads(bench.threads)
    for name, corpus in bench.corpora:
        own = bench.scratch / name.replace("/", "-")
        images, shards, store = own / "images", own / "shards", own / "store"
        take(corpus, IMAGES, images)
        make_shards(images, shards, shard_size=SHARD_SIZE)
        make_store(shards, store, views=VIEWS, threads=bench.threads)
        samples = samples_of(shards, store)

        def stream(workers: int, shards: Path = shards, store: Path = store) -> TargetStream:
            return TargetStream(
                ShardSet.open(str(shards)),
                Location.of(store),
                image_size=SIZE,
                batch_size=BATCH,
                seed=0,
                targets=("logits",),
                drop_last=False,
                num_workers=workers,
            )

        for workers in (0, 2):
            with stream(workers) as reading, _Renderers(samples, workers) as renderers:
                epoch = iter(range(10**6))
                found = pairs(
                    lambda r=reading, e=epoch: cost(lambda: _read(r, next(e))),
                    lambda r=renderers: cost(r.render_all),
                    bench.repeats,
                )
            wall, cpu = speeds(found)
            note = f"{rate(len(samples), [o for o, _ in found])}, alone {rate(len(samples), [f for _, f in found])}"
            what = "stream, in the trainer's process" if workers == 0 else f"stream, {workers} processes"
            # Processes live on between epochs, so their CPU time is not known here.
            yield Line(
                what=what,
                corpus=name,
                ratios=wall,
                cpu_ratios=() if workers else cpu,
                at_least=0.9,
                note=note,
            )
        with stream(0) as reading:
            _check_same_pixels(reading, samples)
            yield _join_share(reading, name, bench.repeats)
            yield _digest_share(reading, store, name, bench.repeats)


def _read(stream: object, epoch: int) -> None:
    for batch in stream.batches(epoch):  # type: ignore[attr-defined]
        assert len(batch.rows_N) > 0


def _check_same_pixels(stream: object, samples: list[Sample]) -> None:
    """The plain loop does the same work: its pixels are those of the stream."""
    batch = next(stream.batches(1))  # type: ignore[attr-defined]
    room_VCHW = np.empty((1, 3, SIZE, SIZE), np.uint8)
    for image_CHW, row in zip(batch.images_NCHW.numpy(), batch.rows_N.tolist(), strict=True):
        decode_and_render(samples[row], [1], room_VCHW)
        assert np.array_equal(image_CHW, room_VCHW[0]), f"row {row} looks different"


def _join_share(stream: object, corpus: str, repeats: int) -> Line:
    """CPU of an epoch from which reading, decoding and rendering are taken out, by that of a whole one.

    Each epoch shows another view, so every one of them loads its targets from the store.
    """
    shares, epoch = [], 0
    for _ in range(repeats + 1):
        whole = cost(lambda e=epoch: _read(stream, e)).cpu
        with ExitStack() as without:
            for name in (
                "samples.images.Images.decode",
                "samples.images.Images.draw",
                "pairs.join.JoinedShard.read",
            ):
                without.enter_context(mock.patch(f"teachonce.stages.{name}", new=_nothing))
            rest = cost(lambda e=epoch + 1: _read(stream, e)).cpu
        shares.append(rest / whole)
        epoch += 2 + 1  # so that the views take turns
    return Line(
        what="label join, share of the stream's CPU",
        corpus=corpus,
        ratios=shares[1:],
        at_most=0.05,
        note="order, labels of 1,000 classes, checks and gathering; everything but reading, decoding, rendering",
    )


def _digest_share(stream: object, store: Path, corpus: str, repeats: int) -> Line:
    """CPU of reading every receipt and hashing every file that it names, by that of an epoch of the stream.

    An epoch of one view hashes no more than that; a step of `distill` adds training to it.
    """
    from teachonce.pipeline.ledger import Ledger
    from teachonce.pipeline.storage import Location

    def check() -> None:
        ledger = Ledger(Location.of(store), "cache")
        for key in ledger.done_keys():
            receipt = ledger.receipt(key)
            assert receipt is not None
            for output in receipt.outputs:
                assert hashlib.sha256((store / output.path).read_bytes()).hexdigest() == output.sha256

    shares = [cost(check).cpu / cost(lambda e=2 * e: _read(stream, e)).cpu for e in range(repeats + 1)]
    return Line(
        what="digests of what is read, share of the stream's CPU",
        corpus=corpus,
        ratios=shares[1:],
        at_most=0.02,
        note="receipts, and sha256 of every chunk of two views of 1,000 classes in fp16",
    )


def _nothing(*arguments: object) -> None:
    return None


class _Renderers:
    """Decodes and renders batches, here or in processes that take every n-th one; nothing is sent anywhere."""

    def __init__(self, samples: list[Sample], workers: int) -> None:
        self._samples, self._workers = samples, workers
        self._view = 0

    def __enter__(self) -> _Renderers:
        context = multiprocessing.get_context("fork")
        self._begin, self._end = context.Barrier(self._workers + 1), context.Barrier(self._workers + 1)
        self._processes = [context.Process(target=self._serve, args=(i,), daemon=True) for i in range(self._workers)]
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.terminate()
            process.join()

    def render_all(self) -> None:
        if self._workers:
            self._begin.wait()
            self._end.wait()
        else:
            self._render(0, 1)

    def _serve(self, worker: int) -> None:
        while True:
            self._begin.wait()
            self._render(worker, self._workers)
            self._end.wait()

    def _render(self, worker: int, workers: int) -> None:
        self._view = (self._view + 1) % VIEWS
        room_NCHW = np.empty((BATCH, 3, SIZE, SIZE), np.uint8)
        for start in range(worker * BATCH, len(self._samples), workers * BATCH):
            for place, sample in enumerate(self._samples[start : start + BATCH]):
                decode_and_render(sample, [self._view], room_NCHW[place : place + 1])
