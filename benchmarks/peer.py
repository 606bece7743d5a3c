"""The stream, with labels, against plain webdataset without: the same tars, the same kind of crop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpora import take
from harness import Bench, Line, cost, pairs, rate, speeds
from stores import make_shards, make_store

IMAGES, SHARD_SIZE, BATCH, SIZE, VIEWS = 2000, 250, 64, 224, 2


def run(bench: Bench) -> Iterator[Line]:
    """In one process, and with two processes that live on from epoch to epoch."""
    import torch
    from teachonce import TargetStream

    torch.set_num_threads(bench.threads)
    for name, corpus in bench.corpora:
        own = bench.scratch / name.replace("/", "-")
        take(corpus, IMAGES, own / "images")
        make_shards(own / "images", own / "shards", shard_size=SHARD_SIZE)
        make_store(own / "shards", own / "store", views=VIEWS, threads=bench.threads)
        for workers in (0, 2):
            plain = _plain(own / "shards", workers)
            with TargetStream(
                own / "shards",
                own / "store",
                image_size=SIZE,
                batch_size=BATCH,
                drop_last=False,
                num_workers=workers,
            ) as stream:
                samples = stream.num_samples
                found = pairs(
                    lambda s=stream, n=samples: cost(lambda: _count(s, n)),
                    lambda p=plain, n=samples: cost(lambda: _count(p, n)),
                    bench.repeats,
                )
            wall, cpu = speeds(found)
            note = f"{rate(samples, [o for o, _ in found])}, webdataset {rate(samples, [f for _, f in found])}"
            what = "stream to webdataset without labels, " + ("one process" if workers == 0 else f"{workers} processes")
            # Processes live on between epochs, so their CPU time is not known here.
            yield Line(
                what=what,
                corpus=name,
                ratios=wall,
                cpu_ratios=() if workers else cpu,
                at_least=1.0,
                note=note,
            )


def _count(batches: Any, expected: int) -> None:
    assert sum(len(batch[0]) for batch in batches) == expected


def _plain(shards: Path, workers: int) -> Any:
    """As its documentation writes it: shuffled shards, a shuffle buffer, PIL, torchvision's crop, batches of uint8."""
    import webdataset
    from torchvision.transforms import (
        Compose,
        InterpolationMode,
        PILToTensor,
        RandomHorizontalFlip,
        RandomResizedCrop,
    )

    crop = Compose(
        [
            RandomResizedCrop(SIZE, interpolation=InterpolationMode.BICUBIC),
            RandomHorizontalFlip(),
            PILToTensor(),
        ]
    )
    tars = [str(tar) for tar in sorted(shards.glob("*.tar"))]
    dataset = webdataset.WebDataset(tars, shardshuffle=100, nodesplitter=webdataset.split_by_node)
    dataset = dataset.shuffle(1000).decode("pil").to_tuple("jpg;png").map_tuple(crop).batched(BATCH, partial=True)
    return webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
