"""Owns the order in which units go to workers, and how often a unit may end its worker before it counts as failed."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from itertools import islice

from .. import stopping
from ..types import Unit

#: How often a unit may end its worker process (out of memory, a crash, a time limit). Then it has failed.
TRIES = 4


class UnitQueue:
    """Units that wait for a worker.

    One that was at work when its process ended may have been the cause: it waits until all others were begun, and is then tried
    alone, so that it takes no other unit along.

    Args:
        units: taken lazily.
    """

    def __init__(self, units: Iterable[Unit]) -> None:
        self._units = iter(units)
        self._next: deque[Unit] = deque()
        self._suspects: deque[Unit] = deque()
        self._deaths: Counter[str] = Counter()

    def waiting(self, most: int) -> int:
        """How many wait, counted up to `most`; none once a stop was asked for."""
        if stopping.asked():
            return 0
        fresh = self._fresh(most)
        return min(most, fresh + len(self._suspects))

    def take(self, *, at_hand: int, idle: int) -> Unit | None:
        """The next one for a worker; None for none at this moment.

        Args:
            at_hand: units that the worker has.
            idle: workers that have none, itself left out: each of them comes first before a worker gets a second one.
        """
        if stopping.asked():
            return None
        if self._fresh((idle if at_hand else 0) + 1) > (idle if at_hand else 0):
            return self._next.popleft()
        return self._suspects.popleft() if self._suspects and not at_hand else None

    def is_suspect(self, unit: Unit) -> bool:
        """Whether it was at work when a process ended."""
        return unit.key in self._deaths

    def give_back(self, unit: Unit) -> None:
        """Its worker is gone, by no fault of the unit."""
        (self._suspects if self.is_suspect(unit) else self._next).appendleft(unit)

    def died(self, unit: Unit) -> int | None:
        """Its worker ended, maybe by it: it is tried again. The number of tries, once they are used up."""
        self._deaths[unit.key] += 1
        if self._deaths[unit.key] >= TRIES:
            return self._deaths.pop(unit.key)
        self._suspects.append(unit)
        return None

    def finished(self, unit: Unit) -> None:
        """It came to its end."""
        self._deaths.pop(unit.key, None)

    def _fresh(self, most: int) -> int:
        self._next.extend(islice(self._units, max(0, most - len(self._next))))
        return len(self._next)
