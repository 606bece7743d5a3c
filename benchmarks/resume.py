"""Going to a sample late in an epoch, in a stream that has just been opened, against going to the first one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from corpora import take
from harness import Bench, Line, cost, median_ms, pairs, slownesses
from stores import make_shards, make_store

IMAGES, SHARD_SIZE, BATCH, SIZE = 2000, 250, 64, 224


def run(bench: Bench) -> Iterator[Line]:
    """Time to the first batch; and what reading everything before it would have taken."""
    for name, corpus in bench.corpora:
        own = bench.scratch / name.replace("/", "-")
        take(corpus, IMAGES, own / "images")
        make_shards(own / "images", own / "shards", shard_size=SHARD_SIZE)
        make_store(own / "shards", own / "store", views=1, threads=bench.threads)
        late = int(0.9 * _count(own)) // BATCH * BATCH
        found = pairs(
            lambda own=own, late=late: cost(lambda: _first_batch(own, late)),
            lambda own=own: cost(lambda: _first_batch(own, 0)),
            bench.repeats,
        )
        wall, cpu = slownesses(found)
        reading = cost(lambda own=own, late=late: _read_until(own, late)).wall
        note = f"{median_ms([o for o, _ in found])}; reading the {late} samples before it: {1000 * reading:.0f} ms"
        yield Line(
            what="resume at nine tenths of an epoch, time to the first batch by that from the start",
            corpus=name,
            ratios=wall,
            cpu_ratios=cpu,
            at_most=1.5,
            note=note,
        )


def _open(own: Path) -> object:
    from teachonce import TargetStream

    return TargetStream(own / "shards", own / "store", image_size=SIZE, batch_size=BATCH)


def _count(own: Path) -> int:
    return int(_open(own).num_samples)  # type: ignore[attr-defined]


def _first_batch(own: Path, samples: int) -> None:
    with _open(own) as stream:  # type: ignore[attr-defined]
        stream.load_state_dict(stream.state_dict() | {"samples": samples})
        assert len(next(iter(stream)).rows_N) == BATCH


def _read_until(own: Path, samples: int) -> None:
    with _open(own) as stream:  # type: ignore[attr-defined]
        for _ in range(samples // BATCH):
            next(iter(stream))
