"""Owns the figures of one run of a stage: what its units took and where, what failed and why, what bounded it and what to change."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..storage_schemas.fingerprint import Json
from ..storage_schemas.plain_text import counted, plural
from . import json_log
from .advice import STARTING, advice, in_words
from .kinds_of_time import COMPUTING, bottleneck_of
from .ledger import noun_of
from .tables import seconds_text, table
from .terminal import say
from .worker import Effort, Outcome

#: A run that takes longer tells people its figures; the log has those of any.
SECONDS_TO_TELL = 60.0

#: Units that are named as the slowest; and kinds of failures, of which there are few where one cause fails many.
_SLOWEST, _FAILURES = 5, 20

#: Characters of a kind of failure.
_LONGEST_KIND = 200


@dataclass(kw_only=True)
class RunFigures:
    """Adds up what comes of units; holds no more for more of them.

    Attributes:
        stage: its name.
        gpus: whether its model works on GPUs.
    """

    stage: str
    gpus: bool = False
    done: int = 0
    samples: int = 0
    bytes_written: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    _began: float = field(default_factory=lambda: time.monotonic())
    _first: float | None = None  # seconds from the beginning until a unit began
    _last: float = 0.0  # seconds from the beginning until a unit ended
    _spans: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    _slowest: list[tuple[float, int, str, Effort]] = field(default_factory=list)
    _failures: dict[str, dict[str, Json]] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """That of the stage."""
        return self.stage.split(" ")[0].partition(".")[0]

    def add(self, outcome: Outcome) -> None:
        """Count what became of a unit, and log it."""
        self._log(outcome)
        if outcome.error is None:
            self.done, self.samples = self.done + 1, self.samples + outcome.rows
        else:
            self._count_failure(outcome)
        effort = outcome.effort
        if effort is None:
            return
        self.bytes_written += effort.bytes_written
        self.seconds.update(effort.seconds)
        self._last = time.monotonic() - self._began
        began = max(0.0, self._last - effort.took)
        self._first = began if self._first is None else min(self._first, began)
        first, last = self._spans.get((effort.node, effort.worker), (effort.began, 0.0))
        ended = effort.began + effort.took
        self._spans[effort.node, effort.worker] = min(first, effort.began), max(last, ended)
        item = (effort.took, self.done + self._failed, outcome.key, effort)
        (heapq.heappush if len(self._slowest) < _SLOWEST else heapq.heappushpop)(self._slowest, item)

    def _count_failure(self, outcome: Outcome) -> None:
        reason = (outcome.error or "").partition(": ")[0][:_LONGEST_KIND]
        if reason not in self._failures and len(self._failures) >= _FAILURES:
            reason = "others"
        entry = self._failures.setdefault(reason, {"reason": reason, "code": outcome.code, "count": 0, "first": ""})
        entry["count"] += 1
        entry["first"] = entry["first"] or outcome.key

    @property
    def _failed(self) -> int:
        return sum(entry["count"] for entry in self._failures.values())

    def _log(self, outcome: Outcome) -> None:
        if not json_log.is_open():
            return
        effort = outcome.effort
        where = {} if effort is None else {"node": effort.node, "process": effort.process, "worker": effort.worker}
        took = {} if effort is None else {"took": round(effort.took, 6), "seconds": _rounded(effort.seconds)}
        wrote = {} if effort is None or not effort.bytes_written else {"bytes": effort.bytes_written}
        failed = outcome.error is not None
        json_log.event(
            "unit",
            f"{outcome.key} failed: {outcome.error}" if failed else f"{outcome.key} is done",
            level="error" if failed else "info",
            stage=self.stage,
            unit=outcome.key,
            state="failed" if failed else "done",
            samples=outcome.rows,
            invalid_rows=outcome.invalid_rows or None,
            code=outcome.code,
            **where,
            **took,
            **wrote,
        )

    @property
    def took(self) -> float:
        """Seconds from the beginning to the last unit's end."""
        return self._last

    @property
    def busy(self) -> float | None:
        """Share of its workers' time, from the first unit to the last one's end, in which the model was at work; None where none was."""
        spans = sum(last - first for first, last in self._spans.values())
        at_work = sum(seconds for kind, seconds in self.seconds.items() if kind in COMPUTING)
        return min(1.0, at_work / spans) if at_work and spans > 0 else None

    @property
    def bounded_by(self) -> str | None:
        """The kind of time that bounded it; None where nothing was measured."""
        if self._first is not None and self._first > self._last / 2:
            return STARTING
        return bottleneck_of(self.seconds)

    def to_json(self) -> dict[str, Json]:
        """All of it; None where unknown."""
        kind = self.bounded_by
        return {
            "units": self.done,
            "failed": self._failed,
            "samples": self.samples,
            "bytes": self.bytes_written,
            "took": round(self.took, 3),
            "starting": None if self._first is None else round(self._first, 3),
            "samples_per_second": round(self.samples / self.took, 3) if self.took > 0 else None,
            "workers": len(self._spans),
            "seconds": _rounded(dict(self.seconds.most_common())),
            "busy": None if self.busy is None else round(self.busy, 4),
            "busy_what": None if self.busy is None else "gpu" if self.gpus else "model",
            "bounded_by": kind,
            "advice": None if kind is None else advice(self.command, kind, gpus=self.gpus),
            "slowest": [
                {"unit": key, "took": round(took, 3), "node": effort.node, "worker": effort.worker}
                | {"seconds": _rounded(effort.seconds)}
                for took, _, key, effort in sorted(self._slowest, reverse=True)
            ],
            "failures": self._by_count,
        }

    @property
    def _by_count(self) -> list[dict[str, Json]]:
        return sorted(self._failures.values(), key=lambda entry: -entry["count"])

    def text(self) -> str:
        """The same for people, in some lines."""
        nouns = plural(noun_of(self.stage))
        rate = f", {self.samples / self.took:.1f} {nouns}/s" if self.took > 0 else ""
        at = f" by {counted(len(self._spans), 'worker')}" if self._spans else ""
        rows = [["took", f"{seconds_text(self.took)}: {counted(self.done, 'unit')}, {self.samples} {nouns}{rate}{at}"]]
        total = sum(self.seconds.values())
        if total > 0:
            rows.append(
                ["time", ", ".join(f"{kind} {value / total:.0%}" for kind, value in self.seconds.most_common())]
            )
        if self.busy is not None:
            rows.append(["the GPU" if self.gpus else "the model", f"at work {self.busy:.0%} of the time"])
        if (kind := self.bounded_by) is not None:
            more = advice(self.command, kind, gpus=self.gpus)
            rows.append(["bounded by", in_words(kind) + (f"; to change that: {more}" if more else "")])
        slow = [
            f"{key} {seconds_text(took)} ({effort.node})"
            for took, _, key, effort in sorted(self._slowest, reverse=True)
        ]
        if self.done > len(slow):
            rows.append(["slowest", ", ".join(slow)])
        rows += [
            ["failed", f"{entry['count']} × {entry['reason']}, first {entry['first']}"] for entry in self._by_count
        ]
        return f"{self.stage}: figures of this run\n" + table(rows)

    def tell(self) -> None:
        """Log them, and tell people where the run was long. Nothing where no unit came to an end."""
        if not self.done and not self._failures:
            return
        json_log.event("summary", f"{self.stage}: figures of this run", stage=self.stage, **self.to_json())
        if self.took > SECONDS_TO_TELL:
            say(self.text(), heard=False)


def _rounded(seconds: Mapping[str, float]) -> dict[str, Json]:
    return {kind: round(value, 6) for kind, value in seconds.items()}
