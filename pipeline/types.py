"""Owns the types between stages and executors: Unit, Stage, Resources, and what units report to while they work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..storage_schemas.fingerprint import Fingerprint
from ..storage_schemas.receipt import Receipt


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A piece of work that is committed and retried as one: deterministic, small, JSON-serialisable.

    Attributes:
        key: names the unit within its stage; the receipt's file name.
        rows: how many samples it holds (for rates and bars).
        inputs: what `run` needs beyond the stage's own configuration.
    """

    key: str
    rows: int = 1
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker process of a stage needs.

    Attributes:
        cpus: cores (torch threads, where the stage uses torch).
        gpus: GPUs.
        units_at_once: units that a worker holds at the same time, so that reading the next overlaps computing
            the present one.
    """

    cpus: int = 1
    gpus: float = 0
    units_at_once: int = 1


class Timer:
    """What a unit reports while it works: samples so far, and seconds spent by kind, summed over threads.

    Never part of a receipt.

    Args:
        watch: called with the number of samples that the unit has done, as often as the unit reports it. What it raises
            ends the unit.

    Attributes:
        seconds: by kind.
        began: when it was made, in seconds since 1970 by this machine's clock.
    """

    def __init__(self, watch: Callable[[int], None] | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.began = time.time()
        self._start = time.perf_counter()
        self._samples = 0
        self._watch = watch
        self._lock = threading.Lock()

    @property
    def took(self) -> float:
        """Seconds since it was made, as a unit begins."""
        return time.perf_counter() - self._start

    def advance(self, samples: int) -> None:
        """So many more samples of the unit are done. Called by one thread of a unit, up to some thousand times a second."""
        self._samples += samples
        if self._watch is not None:
            self._watch(self._samples)

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Add the time spent in the `with` block to `kind`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - start)

    @contextmanager
    def laps(self) -> Iterator[Callable[[str], None]]:
        """For one thread's inner loop: each call of what this yields adds the time since the last one to a kind of work."""
        seconds: dict[str, float] = {}
        last = time.perf_counter()

        def lap(kind: str) -> None:
            nonlocal last
            now = time.perf_counter()
            seconds[kind] = seconds.get(kind, 0.0) + now - last
            last = now

        try:
            yield lap
        finally:
            for kind, value in seconds.items():
                self.add(kind, value)

    def add(self, kind: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere."""
        with self._lock:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a unit gives in place of a receipt where its stage only looks: it has written nothing.

    Attributes:
        key: of the unit.
        rows: how many samples it looked at.
        content: goes to the driver with the outcome; small, and picklable.
    """

    key: str
    rows: int
    content: Any


#: Does one unit: idempotent, and every byte it wrote is durable before it returns the receipt. Where it has a method `close`, that
#: is called when no unit is left.
RunUnit = Callable[[Unit, Timer], Receipt | Seen]


class Stage(Protocol):
    """What the work is. Picklable and small; independent of executors.

    A stage that makes what another one makes has an attribute `ledger` too, the name of that one, where readers look (see `ledger_of`).
    """

    @property
    def name(self) -> str:
        """The command's name, and the ledger's folder where the stage names no other."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that decides the bytes of this stage's outputs."""

    @property
    def resources(self) -> Resources:
        """What one worker needs."""

    def plan(self) -> Iterator[Unit]:
        """All units in order: cheap, streamed, the same on every call."""

    def open(self) -> RunUnit:
        """Load what all units share (a model), once in each worker process, and return the function that does one."""


def ledger_of(stage: Stage) -> str:
    """The name of a stage's ledger: its own, or that of the stage whose output it makes."""
    return str(getattr(stage, "ledger", stage.name))


@runtime_checkable
class Growth(Stage, Protocol):
    """A stage that adds to an output that is in use: what its units write counts only from `commit` on."""

    def commit(self) -> None:
        """Called by the driver once all units are done, and again where the same command runs again. One write makes it count."""
