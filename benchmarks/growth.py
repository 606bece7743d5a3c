"""Growing a store from 4 views to 8 against caching 4 views alone, and against caching 8 at once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from corpora import take
from harness import Bench, Cost, Line, cost, pairs, slownesses
from stores import cache_views, fresh, make_shards, name_classes

IMAGES, SHARD_SIZE, VIEWS = 400, 100, 4


def run(bench: Bench) -> Iterator[Line]:
    """The teacher is tiny, so that what is not the teacher shows."""
    for name, corpus in bench.corpora:
        own = bench.scratch / name.replace("/", "-")
        take(corpus, IMAGES, own / "images")
        make_shards(own / "images", own / "shards", shard_size=SHARD_SIZE)
        name_classes(own / "named", threads=bench.threads)
        shutil.copytree(own / "named", own / "four")
        cache_views(own / "shards", own / "four", views=VIEWS, threads=bench.threads)

        def made(own: Path, begun: str, views: int, *, grow: bool = False) -> Cost:
            shutil.copytree(own / begun, fresh(own / "made"))
            work = {"views": views, "threads": bench.threads, "chunk_views": None if grow else VIEWS, "grow": grow}
            return cost(lambda: cache_views(own / "shards", own / "made", **work))

        for what, views, at_most in (("4 new views alone", VIEWS, 1.05), ("8 views at once", 2 * VIEWS, None)):
            found = pairs(
                lambda own=own: made(own, "four", 2 * VIEWS, grow=True),
                lambda own=own, views=views: made(own, "named", views),
                bench.repeats,
            )
            wall, cpu = slownesses(found)
            yield Line(
                what=f"growing a store from 4 views to 8, time by that of {what}",
                corpus=name,
                ratios=wall,
                cpu_ratios=cpu,
                at_most=at_most,
                note=f"{IMAGES} images, a tiny teacher",
            )
