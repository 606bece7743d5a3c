"""Serves epochs of a stream to the process that measures: a line in, epochs, a line out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Any

#: By (mode, loader processes): a function that gives the batches of one epoch.
Epochs = Callable[[str, int], Iterable[Any]]


def serve(make: Callable[[Mapping[str, Any]], Epochs], packages: tuple[str, ...]) -> None:
    """Make the data once, then read epochs for each line of stdin, such as `decoded 2 1`: mode, loader processes, epochs."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    given = json.loads(sys.argv[1])
    epochs = make(given)
    streams: dict[tuple[str, int], Iterable[Any]] = {}
    print(json.dumps({"versions": {name: version(name) for name in packages}}), file=answers, flush=True)
    for line in sys.stdin:
        mode, workers, times = line.split()
        key = (mode, int(workers))
        if key not in streams:
            streams[key] = epochs(*key)
        start = time.perf_counter()
        count = sum(len(batch[1]) for _ in range(int(times)) for batch in streams[key])
        print(json.dumps({"count": count, "wall": time.perf_counter() - start}), file=answers, flush=True)
        for other in [k for k in streams if k != key]:
            del streams[other]  # ends its loader processes
