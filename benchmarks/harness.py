"""Owns how things are measured: runs that take turns, the ratio of each pair, medians; and the table."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from peer_environment import Environments


@dataclass(frozen=True)
class Cost:
    """The cost of some work.

    Attributes:
        wall: seconds on the clock.
        cpu: seconds of processor time, over all threads and finished child processes.
    """

    wall: float
    cpu: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu)


#: One pair of costs: ours, and the floor's.
Pair = tuple[Cost, Cost]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table.

    Attributes:
        what: what was measured.
        corpus: on which images.
        ratios: of the clock's seconds, one a pair (or of whatever `unit` says).
        cpu_ratios: the same of processor seconds; empty where that means nothing.
        at_least, at_most: the bound on the median of `ratios`; both None for a line that only informs.
        note: absolute figures, for orientation.
    """

    what: str
    corpus: str
    ratios: Sequence[float]
    cpu_ratios: Sequence[float] = ()
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool | None:
        """Whether the median keeps the bound on the clock; None without one."""
        return self._keeps(self.ratio)

    @property
    def met_in_cpu_time(self) -> bool | None:
        """The same of processor time, which other work on the machine disturbs less."""
        return self._keeps(statistics.median(self.cpu_ratios)) if self.cpu_ratios else None

    def _keeps(self, ratio: float) -> bool | None:
        if self.at_least is not None:
            return ratio >= self.at_least
        return None if self.at_most is None else ratio <= self.at_most

    def to_json(self) -> dict[str, object]:
        cpu = statistics.median(self.cpu_ratios) if self.cpu_ratios else None
        return {
            "what": self.what,
            "corpus": self.corpus,
            "ratio": self.ratio,
            "ratios": list(self.ratios),
            "cpu_ratio": cpu,
            "cpu_ratios": list(self.cpu_ratios),
            "at_least": self.at_least,
            "at_most": self.at_most,
            "met": self.met,
            "met_in_cpu_time": self.met_in_cpu_time,
            "note": self.note,
        }


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The inputs of every benchmark.

    Attributes:
        corpora: (name, folder of images) to measure on; see `corpora`.
        scratch: an empty folder of its own.
        repeats: pairs to measure.
        threads: torch threads, and decoding threads where there are any.
        environments: of the peers that have one of their own.
    """

    corpora: Sequence[tuple[str, Path]]
    scratch: Path
    repeats: int
    threads: int
    environments: Environments


def cost(work: Callable[[], object]) -> Cost:
    """Do the work once and return its cost."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    work()
    return Cost(time.perf_counter() - wall, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def pairs(ours: Callable[[], Cost], floor: Callable[[], Cost], repeats: int, *, warm: bool = True) -> list[Pair]:
    """Both by turns; the order alternates, so that a drift affects both. `warm` puts one unmeasured turn each before them."""
    if warm:
        ours(), floor()
    found = []
    for turn in range(repeats):
        if turn % 2:
            other, mine = floor(), ours()
        else:
            mine, other = ours(), floor()
        found.append((mine, other))
    return found


def speeds(found: Sequence[Pair]) -> tuple[list[float], list[float]]:
    """Our speed by the floor's, in each pair: on the clock, and in processor time."""
    return [f.wall / o.wall for o, f in found], [f.cpu / o.cpu for o, f in found]


def slownesses(found: Sequence[Pair]) -> tuple[list[float], list[float]]:
    """Our time by the floor's, in each pair: on the clock, and in processor time."""
    return [o.wall / f.wall for o, f in found], [o.cpu / f.cpu for o, f in found]


def rate(count: int, costs: Sequence[Cost]) -> str:
    """Images a second, by the median on the clock."""
    return f"{count / statistics.median(c.wall for c in costs):,.0f}/s"


def median_ms(costs: Sequence[Cost]) -> str:
    return f"{1000 * statistics.median(c.wall for c in costs):.0f} ms"


def table(lines: Sequence[Line]) -> Iterator[str]:
    """The lines as a Markdown table, which reads well in a terminal too."""
    head = ("what", "corpus", "ratio", "min to max", "in CPU time", "bound", "met", "note")
    rows = [head, tuple("---" for _ in head), *(_cells(line) for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        cells = (cell.ljust(width, "-" if cell == "---" else " ") for cell, width in zip(row, widths, strict=True))
        yield f"| {' | '.join(cells)} |"


def _cells(line: Line) -> tuple[str, ...]:
    bound = f"≥ {line.at_least:g}" if line.at_least is not None else ""
    bound = f"≤ {line.at_most:g}" if line.at_most is not None else bound
    met = {True: "yes", False: "CPU time only" if line.met_in_cpu_time else "NO", None: ""}[line.met]
    cpu = f"{statistics.median(line.cpu_ratios):.3f}" if line.cpu_ratios else ""
    spread = f"{min(line.ratios):.3f} to {max(line.ratios):.3f}" if len(line.ratios) > 1 else ""
    return (line.what, line.corpus, f"{line.ratio:.3f}", spread, cpu, bound, met, line.note)
