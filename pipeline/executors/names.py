"""Owns the names by which Ray's dashboard, `ray list` and `ps` show what is ours: actors by stage and number, tasks by stage and unit."""

from __future__ import annotations

import itertools
import uuid

#: Names of tasks in a run that are a unit's own. Ray keeps a series of metrics for each name that there ever was, and of
#: more than 2,000 its exporter keeps none apart.
_OWN_NAMES = 1000

#: Letters that the names of later units leave out: a thousand shards share one.
_LEFT_OUT = 3


class RayNames:
    """Names of one run.

    Attributes:
        namespace: of this run's actors alone, so that no other command's have their names.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._numbers = itertools.count(1)
        self._left = _OWN_NAMES
        self.namespace = f"teachonce-{uuid.uuid4().hex}"

    def worker(self) -> str:
        """Of the next actor. One that takes the place of another gets a new name too."""
        return f"{self._stage} worker {next(self._numbers)}"

    @property
    def opening(self) -> str:
        """Of what a worker does first."""
        return f"{self._stage}: opening"

    def unit(self, key: str) -> str:
        """Of the task that does a unit."""
        self._left -= 1
        return f"{self._stage} {key if self._left >= 0 else key[:-_LEFT_OUT] + '…'}"
