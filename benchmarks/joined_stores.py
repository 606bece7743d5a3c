"""What a second store costs the stream: `python benchmarks/joined_stores.py SHARDS STORE OTHER [--size 224] [--pairs 5]`.

OTHER holds another teacher's targets of the same views. Epochs of images with STORE's targets alone, and with OTHER's beside them, alternate
in this process; their CPU time is compared (Zarr's threads count). One line of JSON: the median ratio, and all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import torch
from teachonce.pipeline.storage import Location
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.pairs.other_store import OtherStore
from teachonce.stages.pairs.sources import TargetSource
from teachonce.stages.pairs.store import open_store, store_facts
from teachonce.stages.pairs.stream import TargetStream
from teachonce.storage_schemas.store_description import StoreDescription


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("shards", "store", "other"):
        parser.add_argument(name)
    parser.add_argument("--size", type=int, default=224, help="pixels of the student's images")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shards, facts = ShardSet.open(options.shards), store_facts(Location.of(options.store))
    about = StoreDescription.read(open_store(facts.store), facts.store)
    other = OtherStore.named(f"other={options.other}", shards, facts.store, about, facts.spec.num_views)
    own = tuple(target.name for target in facts.spec.targets)

    def seconds(sources: Sequence[TargetSource]) -> float:
        names = own + tuple(spec.name for source in sources for spec in other.specs)
        with TargetStream(
            shards, options.store, image_size=options.size, batch_size=64, targets=names, sources=sources
        ) as stream:
            next(stream.batches(0))
            begun = time.process_time()
            for _ in stream.batches(1):
                pass
            return time.process_time() - begun

    ratios = [seconds([other]) / seconds([]) for _ in range(options.pairs)]
    print(json.dumps({"with_by_without": round(statistics.median(ratios), 4), "all": [round(r, 4) for r in ratios]}))


if __name__ == "__main__":
    main()
