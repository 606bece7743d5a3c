"""Owns progress on stderr: a bar with rate and time left; plain lines now and then where stderr is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """Counts samples towards a total (None: not known beforehand). Use as a context manager; `note` adds figures after the rate."""

    def __init__(
        self, title: str, total: int | None, done: int = 0, unit: str = "img", *, every_seconds: float = 10.0
    ) -> None:
        self._title = title
        self._total = total
        self._count = done
        self._started_at = done
        self._unit = unit
        self._every = every_seconds
        self._note = ""

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        self._start = self._last_line = time.monotonic()
        self._bar = (
            tqdm(total=self._total, initial=self._count, desc=self._title, unit=self._unit, file=sys.stderr,
                 dynamic_ncols=True, smoothing=0.1)
            if sys.stderr.isatty() else None
        )  # fmt: skip
        return self

    def advance(self, count: int, note: str = "") -> None:
        """Add `count` samples; `note` replaces the figures shown after the rate."""
        self._count += count
        self._note = note or self._note
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last_line >= self._every:
            self._last_line = time.monotonic()
            self._print_line()

    @property
    def rate(self) -> float:
        """Samples per second since the start, without those that were done before."""
        return (self._count - self._started_at) / max(time.monotonic() - self._start, 1e-9)

    def _print_line(self) -> None:
        of_total = left = ""
        if self._total is not None:
            of_total = f"/{self._total}"
            left = f", {(self._total - self._count) / self.rate:.0f} s left" if self.rate > 0 else ""
        note = f", {self._note}" if self._note else ""
        print(
            f"{self._title}: {self._count}{of_total} {self._unit}, {self.rate:.1f} {self._unit}/s{left}{note}",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._count != self._started_at:
            self._print_line()
