"""webdataset: TarWriter, then WebDataset with shuffled shards and a shuffle buffer, WebLoader."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import webdataset
from pillow_view import BATCH, collate, samples, view
from serve import serve


def make(given):
    for number, (data, label) in enumerate(samples(given["images"])):
        if number % given["shard_size"] == 0:
            writer = webdataset.TarWriter(f"{given['out']}/{number // given['shard_size']:06d}.tar")
        writer.write({"__key__": f"{number:08d}", "jpg": data, "npy": label})
        if (number + 1) % given["shard_size"] == 0:
            writer.close()
    writer.close()
    tars = sorted(str(tar) for tar in Path(given["out"]).glob("*.tar"))

    def epochs(mode, workers):
        dataset = webdataset.WebDataset(tars, shardshuffle=100, nodesplitter=webdataset.split_by_node)
        dataset = dataset.shuffle(1000).to_tuple("jpg", "npy").map(as_view if mode == "decoded" else as_bytes)
        dataset = dataset.batched(BATCH, collation_fn=collate, partial=True)
        return webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)

    return epochs


def as_bytes(sample):
    data, label = sample
    return data, np.load(io.BytesIO(label))


def as_view(sample):
    data, label = sample
    return view(data), np.load(io.BytesIO(label))


if __name__ == "__main__":
    serve(make, ("webdataset", "torch", "pillow"))
