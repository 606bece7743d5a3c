"""List the images of whose class the teacher is least certain, from a target store alone: no teacher, no torch.

python examples/least_certain.py demo-run/targets --count 10
"""

import argparse
import heapq
from pathlib import Path

import numpy as np
from teachonce import open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="target store of `teachonce cache`")
    parser.add_argument("--count", type=int, default=10, help="images to list")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each, as the teacher saw it")
    args = parser.parse_args()

    least: list[tuple[float, int, str]] = []  # (negative probability of the first class, row, class)
    with open_store(args.store) as store:
        for rows in store.shards():  # one shard in memory at a time
            mean_NC = store.probabilities(rows, view=None).mean(axis=1)  # over the views
            for row, mean_C in zip(rows, mean_NC, strict=True):
                if not np.isnan(mean_C[0]):  # the image was usable
                    first = int(mean_C.argmax())
                    heapq.heappush(least, (-float(mean_C[first]), row, store.class_names[first]))
                    if len(least) > args.count:
                        heapq.heappop(least)
        for negative, row, name in sorted(least, reverse=True):
            print(f"{store.paths(row)}: {name} {-negative:.3f}")
            if args.pictures:
                args.pictures.mkdir(exist_ok=True)
                (args.pictures / f"{row}.webp").write_bytes(store.thumbnail(row))


if __name__ == "__main__":
    main()
