"""litdata: `optimize`, then StreamingDataset and StreamingDataLoader, shuffled."""

from __future__ import annotations

from functools import partial

import litdata
from pillow_view import BATCH, collate, samples, view
from serve import serve


def make(given):
    # One item is a list of samples: what optimize yields of it becomes the samples of the data set.
    litdata.optimize(
        fn=partial(read, given["images"]),
        inputs=[0],
        output_dir=given["out"],
        chunk_size=given["shard_size"],
        num_workers=1,
        verbose=False,
    )

    def epochs(mode, workers):
        dataset = (Views if mode == "decoded" else Bytes)(given["out"], shuffle=True, drop_last=False)
        return litdata.StreamingDataLoader(
            dataset,
            batch_size=BATCH,
            shuffle=True,
            drop_last=False,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    return epochs


def read(folder, _):
    for data, label in samples(folder):
        yield {"image": data, "label": label}


class Bytes(litdata.StreamingDataset):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample["image"], sample["label"]


class Views(litdata.StreamingDataset):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return view(sample["image"]), sample["label"]


if __name__ == "__main__":
    serve(make, ("litdata", "torch", "pillow"))
