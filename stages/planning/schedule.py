"""Owns how long workers take, and how many a deadline needs."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.tables import seconds_text
from ...storage_schemas.errors import InputError
from ...storage_schemas.plain_text import counted
from .figures import Figure

#: Seconds until a Ray of the command's own has started: see docs/plan.md.
RAY_SECONDS = 5.0

#: Seconds until a command that is not tried here does its first batch.
START_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Shards handed out to workers, one after another.

    Attributes:
        shards: that are left to do.
        rows: of a whole shard; the last may be shorter.
        all_rows: of all of them.
        rate: views a second of one worker.
        views: of a row.
        start: seconds until a worker does its first batch.
    """

    shards: int
    rows: int
    all_rows: int
    rate: Figure
    views: int
    start: Figure

    @property
    def shard_seconds(self) -> float:
        return self.rows * self.views / self.rate.value

    @property
    def work_seconds(self) -> Figure:
        """Of one worker for all shards, without its start."""
        return Figure.of(self.all_rows * self.views / self.rate.value, self.rate)

    def seconds(self, workers: int) -> Figure:
        """Until the last shard is done: no worker helps another with a shard."""
        if not self.shards:
            return Figure.of(0.0)
        rounds = -(-self.shards // workers)
        alone = self.shards - (rounds - 1) * workers == 1  # the last shard, which may be shorter
        last = max(0, self.all_rows - (self.shards - 1) * self.rows) if alone else self.rows
        rows = (rounds - 1) * self.rows + last
        return Figure.of(self.start.value + rows * self.views / self.rate.value, self.rate, self.start)

    def workers_for(self, hours: float) -> int:
        """The fewest that are done in time.

        Raises:
            InputError: there is no such number.
        """
        least, most = 1, max(1, self.shards)
        best = self.seconds(most).value
        if best > hours * 3600:
            raise InputError(
                "no number of workers meets the deadline",
                code="deadline-impossible",
                where=f"--deadline {hours:g}",
                expected=f"at least {best / 3600:.3g} hours: {seconds_text(self.start.value)} to start, and "
                f"{seconds_text(self.shard_seconds)} for one shard",
                found=f"{hours:g} hours, for {counted(self.shards, 'shard')}",
                hint="give it more time; or, where shards are not made yet, a smaller --shard-size",
            )
        while least < most:
            middle = (least + most) // 2
            if self.seconds(middle).value <= hours * 3600:
                most = middle
            else:
                least = middle + 1
        return least
