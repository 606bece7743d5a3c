"""Owns the choice where samples are decoded ahead: in how many processes, or in threads."""

from __future__ import annotations

from collections.abc import Sequence

from ...pipeline.cores import usable_cores
from .processes import Processes
from .threads import Threads
from .work import Pool


def decode_workers(chosen: int | None, *, device: str, threads: int, least: int = 0) -> int:
    """Processes to decode in: the user's choice, or the cores that torch's threads leave; with a model on a GPU, all.

    0 means threads of this process: enough where the model runs on the same few cores and takes most of their time.

    Args:
        least: so many at least where the user has not chosen.
    """
    if chosen is not None:
        return chosen
    return max(least, usable_cores() if device == "cuda" else usable_cores() - threads)


def make_pool(workers: int, threads: int, modules: Sequence[str] = ()) -> Pool:
    """`workers` processes that import these modules, or so many threads of this process where that is 0."""
    return Processes(workers, modules) if workers else Threads(threads)
