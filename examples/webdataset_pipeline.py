"""Add stored targets to the samples of a WebDataset pipeline that you have, here to train a linear model on pixels.

python examples/webdataset_pipeline.py demo-run/shards demo-run/targets --views 4 --size 32
"""

import argparse
from pathlib import Path

import torch
import webdataset
from teachonce import join_targets
from torch.nn import functional as F


def loader(shards: Path, store: str, *, view: int, size: int, batch_size: int) -> webdataset.WebLoader:
    """Batches of images (N, 3, size, size) uint8 and logits (N, C) fp32, of one view of every usable sample."""
    tars = [str(tar) for tar in sorted(shards.glob("*.tar"))]
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=view, empty_check=False)
    # In front of all that renames or drops members: it compares the key of each sample with the store's.
    dataset = dataset.compose(join_targets(store, view=view, image_size=size))
    dataset = dataset.shuffle(1000, seed=view).to_tuple("image", "logits").batched(batch_size)
    return webdataset.WebLoader(dataset, batch_size=None, num_workers=min(2, len(tars)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="folder of `teachonce shard`")
    parser.add_argument("store", help="target store of `teachonce cache`, made from these shards")
    parser.add_argument("--views", type=int, default=1, help="views in the store: one an epoch")
    parser.add_argument("--size", type=int, default=32, help="pixels of the images")
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()

    model, optimizer = None, None
    for view in range(args.views):
        total, samples = 0.0, 0
        batches = loader(args.shards, args.store, view=view, size=args.size, batch_size=args.batch_size)
        for images_NCHW, teacher_NC in batches:
            if model is None:
                model = torch.nn.Linear(3 * args.size**2, teacher_NC.shape[1])
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
            student_NC = model(images_NCHW.flatten(1).float() / 127.5 - 1)
            loss = F.cross_entropy(student_NC, teacher_NC.softmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, samples = total + loss.item() * len(images_NCHW), samples + len(images_NCHW)
        print(f"view {view}: {samples} samples, cross-entropy {total / samples:.4f}")


if __name__ == "__main__":
    main()
