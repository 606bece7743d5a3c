"""The teacher's forward pass by batch size: the ground for `--batch-size`'s default. It has no bound."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from cache import MODEL, SIZE, OwnForward
from harness import Bench, Cost, Line, cost, rate

IMAGES, SIZES = 256, (16, 32, 64, 128, 256)


def run(bench: Bench) -> Iterator[Line]:
    """Every size by turns; ratios are to the best size of the same turn."""
    forward = OwnForward(bench.threads)
    images_NCHW = np.random.default_rng(0).integers(0, 256, (IMAGES, 3, SIZE, SIZE), np.uint8)
    costs: dict[int, list[Cost]] = {size: [] for size in SIZES}
    for turn in range(min(3, bench.repeats) + 1):
        for size in SIZES:
            batches = [images_NCHW[start : start + size] for start in range(0, IMAGES, size)]
            one = cost(lambda b=batches: forward(b))
            if turn:
                costs[size].append(one)
    turns = list(zip(*costs.values(), strict=True))
    best, best_cpu = ([min(getattr(c, kind) for c in turn) for turn in turns] for kind in ("wall", "cpu"))
    for size in SIZES:
        yield Line(
            what=f"forward alone, {MODEL} bf16, batches of {size}",
            corpus="",
            ratios=[b / c.wall for b, c in zip(best, costs[size], strict=True)],
            cpu_ratios=[b / c.cpu for b, c in zip(best_cpu, costs[size], strict=True)],
            note=rate(IMAGES, costs[size]),
        )
