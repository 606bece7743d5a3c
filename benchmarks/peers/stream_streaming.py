"""MosaicML streaming: MDSWriter, then StreamingDataset with shuffling in torch's DataLoader."""

from __future__ import annotations

import sys
import warnings

from pillow_view import BATCH, collate, samples, view
from serve import serve
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader

COLUMNS = {"image": "bytes", "label": "ndarray:float16:1000"}


def make(given):
    sample_bytes = 20_000  # a photograph with its label
    with MDSWriter(out=given["out"], columns=COLUMNS, size_limit=given["shard_size"] * sample_bytes) as writer:
        for data, label in samples(given["images"]):
            writer.write({"image": data, "label": label})

    def epochs(mode, workers):
        dataset = (Views if mode == "decoded" else Bytes)(local=given["out"], shuffle=True, batch_size=BATCH)
        return DataLoader(
            dataset, batch_size=BATCH, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0
        )

    return epochs


class Bytes(StreamingDataset):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample["image"], sample["label"]


class Views(StreamingDataset):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return view(sample["image"]), sample["label"]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(make, ("mosaicml-streaming", "torch", "pillow"))
    sys.exit()
