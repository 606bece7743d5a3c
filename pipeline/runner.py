"""Owns the run of a stage: plan minus receipts, mapped by an executor; every failure collected, and shown by the exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..storage_schemas.errors import IncompleteError, InputError, TeachonceError, UnitsFailed
from ..storage_schemas.plain_text import counted, plural, typed
from ..storage_schemas.receipt import Receipt
from . import stopping
from .board import Board
from .driver import only_driver, set_up
from .ledger import Ledger, Plan, noun_of
from .output import another_output
from .progress import Progress
from .run_figures import RunFigures
from .slices import Slice
from .storage import Location
from .types import Growth, Stage, Unit, ledger_of
from .worker import Outcome

#: Units that are left, and named.
_NAMED = 20

#: Units after which receipts are packed for the first time in a run.
_PACK_AT = 1000

#: From this share on, unusable rows are reported with their reasons.
LARGE_SHARE = 0.1


class Executor(Protocol):
    """Runs units somewhere and yields what became of each, as they finish."""

    def map(self, stage: Stage, ledger: Ledger, units: Iterable[Unit], board: Board) -> Iterator[Outcome]:
        """Take units lazily, so that the driver's memory does not grow with the plan. Progress goes to the board."""


@dataclass(kw_only=True)
class Summary:
    """What one run of a stage did.

    Attributes:
        units: units in the plan, or in the slice that was to be done.
        done_before: units whose receipts were there already.
        done_now: units finished by this run.
        failed: failed unit keys with one-line reasons.
        rows: rows of the units finished by this run.
        invalid_rows: those of them that could not be used.
        all_rows: rows of all units that are done, without those that were left out.
        unusable: those of them that could not be used, by kind of reason, the most frequent first.
        part: the slice, as `I/N`; None for all units. Of a slice `all_rows` and `unusable` are not counted.
    """

    stage: str
    units: int
    done_before: int = 0
    done_now: int = 0
    rows: int = 0
    invalid_rows: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    all_rows: int = 0
    unusable: dict[str, int] = field(default_factory=dict)
    part: str | None = None

    @property
    def warning(self) -> str | None:
        """A line for people where a large share of the images cannot be used."""
        bad = sum(self.unusable.values())
        if not bad or bad < LARGE_SHARE * self.all_rows:
            return None
        return f"{bad} of {counted(self.all_rows, 'image')} cannot be used: {self.reasons}"

    @property
    def reasons(self) -> str:
        """The kinds of reasons, each with its count."""
        return ", ".join(f"{count} × {kind}" for kind, count in self.unusable.items())


def run_stage(
    stage: Stage, out: Location, executor: Executor, *, progress: bool = True, part: Slice | None = None
) -> Summary:
    """Do every unit of `stage` that has no intact receipt under `out`.

    Args:
        part: which of them; None for all. After all slices have ended, `finish_stage` looks whether anything is left.

    Raises:
        BusyError: another process does so.
        Stopped: a signal asked for a stop, and units are left.
        MismatchError: `out` holds work of another fingerprint.
        InputError: the plan is empty, or not one row of it can be used.
        UnitsFailed: some units failed; the others are committed.
    """
    with only_driver(out, f"teachonce {stage.name}", part):
        run = StageRun(stage, out, part)
        set_up(out)
        if run.has_units_left:
            with run.bar() as bar:
                board = Board(stage.name, bar, run.done_rows, counts=progress)
                for outcome in executor.map(stage, run.ledger, stopping.unless_asked(run.left()), board):
                    run.settle(outcome)
                    board.settle(outcome)
        return run.finish()


def finish_stage(stage: Stage, out: Location) -> Summary:
    """What comes after the last slice: look whether every unit is done, and what the run of a stage ends with. No unit is done.

    Raises:
        BusyError: a slice is at work.
        IncompleteError: units are left; names some, with their numbers.
    """
    with only_driver(out, f"teachonce {stage.name}"):
        run = StageRun(stage, out)
        left = run.left_numbers()
        if left:
            some = ", ".join(map(str, left[:_NAMED])) + (", …" if len(left) > _NAMED else "")
            raise IncompleteError(
                f"{stage.name} is not finished",
                code="stage-unfinished",
                where=out,
                expected=counted(run.summary.units, "unit"),
                found=f"{run.summary.units - len(left)}; units {some} are left"
                if len(left) > 1
                else f"all but unit {some}",
                hint=f"run the slices again that have them: of N slices unit i is in slice i mod N; see `teachonce status {typed(out)}`",
            )
        return run.finish()


class StageRun:
    """A run of one stage, between the plan and the summary. The caller drives the output, and does the units.

    Attributes:
        ledger: of the stage; the plan is recorded in it.
        summary: what was done, so far.
        done_rows: rows of units that were done before.
        codes: of failed units, those of their errors.
        figures: what they took.

    Raises:
        MismatchError: `out` holds work of another fingerprint.
        InputError: the plan is empty.
    """

    def __init__(self, stage: Stage, out: Location, part: Slice | None = None) -> None:
        self.ledger = Ledger(out, ledger_of(stage))
        self.codes: dict[str, str] = {}
        self._stage, self._out, self._part = stage, out, part
        self.figures = RunFigures(stage=stage.name, gpus=stage.resources.gpus > 0)
        units, rows = _totals(stage.plan())
        if units == 0:
            raise InputError(
                f"{stage.name} has nothing to do",
                code="nothing-to-do",
                where=out,
                hint="give it a corpus with images",
            )
        self.ledger.begin(
            Plan(
                stage=self.ledger.stage,
                command=stage.name,
                fingerprint=stage.fingerprint,
                units=units,
                rows=rows,
            ),
            hint=f"use the options of the first run, or {another_output(out, stage.name)}",
            sweep=part is None,
        )
        if part is not None:
            units, rows = _totals(self._units())
        self._rows = rows
        self._pack_at = _PACK_AT
        self._rows_before = _Rows()
        there, intact = self.ledger.files_there(), set[str]()
        for receipt in self.ledger.receipts(pack=True):
            self._rows_before.add(receipt)
            if self.ledger.is_intact(receipt, there):
                intact.add(receipt.key)
        self._done: set[str] = set()
        self.done_rows = 0
        for unit in self._units() if intact else ():
            if unit.key in intact:  # a ledger may have receipts of units that are another generation's by now
                self._done.add(unit.key)
                self.done_rows += unit.rows
        given = None if part is None else str(part)
        self.summary = Summary(stage=stage.name, units=units, done_before=len(self._done), part=given)

    def _units(self) -> Iterator[Unit]:
        """Those that are to be done."""
        return self._stage.plan() if self._part is None else self._part.of(self._stage.plan())

    @property
    def has_units_left(self) -> bool:
        return self.summary.done_before < self.summary.units

    def left(self) -> Iterator[Unit]:
        """Units without an intact receipt."""
        return (unit for unit in self._units() if unit.key not in self._done)

    def left_numbers(self) -> list[int]:
        """Where they stand in the plan, from 0 on."""
        return [number for number, unit in enumerate(self._stage.plan()) if unit.key not in self._done]

    @property
    def _rows_of_all(self) -> _Rows:
        """Of all units that are done by now; where none was done since it began, it has read their receipts already."""
        if not self.summary.done_now:
            return self._rows_before
        rows = _Rows()
        for receipt in self.ledger.receipts(pack=True):
            rows.add(receipt)
        return rows

    def bar(self) -> Progress:
        """A bar over all rows."""
        title = f"{self._stage.name} (resumed)" if self._done else self._stage.name
        noun = noun_of(self._stage.name)
        return Progress(title, self._rows, self.done_rows, "img" if noun == "image" else plural(noun))

    def settle(self, outcome: Outcome) -> None:
        """Count what became of a unit."""
        _count(self.summary, outcome)
        self.figures.add(outcome)
        if self.figures.done >= self._pack_at:
            self._pack_at *= 2  # so that all the listing that it takes is no more than twice the last one's
            self.ledger.pack()
        if outcome.code is not None:
            self.codes[outcome.key] = outcome.code

    def finish(self) -> Summary:
        """The summary, once all units are settled.

        Raises:
            UnitsFailed: some failed.
            Stopped: a stop was asked for before all were done.
            InputError: not one row can be used.
        """
        self.figures.tell()
        if self.has_units_left and self._part is None:
            self._out.remove_temporaries()  # of a worker that was killed and replaced
        if self.summary.failed:
            raise failure(self.summary, self.codes, self._out)
        done = self.summary.done_before + self.summary.done_now
        if done < self.summary.units and stopping.asked():
            found = f"{done} of {counted(self.summary.units, 'unit')} done"
            raise stopping.stopped(self._out, found)
        if self._part is not None:
            self.ledger.pack()
            return self.summary
        self._rows_of_all.tell(self.summary)
        if isinstance(self._stage, Growth):
            self._stage.commit()
            return self.summary
        if 0 < self.summary.all_rows == sum(self.summary.unusable.values()):
            raise InputError(
                "not one image can be used",
                code="images-none-usable",
                where=self._out,
                expected="at least one usable image",
                found=self.summary.reasons,
                hint=f"see `teachonce status {typed(self._out)}`",
            )
        return self.summary


def _totals(units: Iterable[Unit]) -> tuple[int, int]:
    """How many there are, and their rows."""
    count = rows = 0
    for unit in units:
        count, rows = count + 1, rows + unit.rows
    return count, rows


class _Rows:
    """Rows of receipts, and those of them that could not be used, by kind of reason."""

    def __init__(self) -> None:
        self._rows, self._kinds = 0, Counter[str]()

    def add(self, receipt: Receipt) -> None:
        unusable = [bad.kind for bad in receipt.invalid_rows if not bad.is_left_out]
        self._rows += receipt.rows - (len(receipt.invalid_rows) - len(unusable))
        self._kinds.update(unusable)

    def tell(self, summary: Summary) -> None:
        summary.all_rows = self._rows
        summary.unusable = dict(sorted(self._kinds.items(), key=lambda item: (-item[1], item[0])))


def _count(summary: Summary, outcome: Outcome) -> None:
    if outcome.error is not None:
        summary.failed[outcome.key] = outcome.error
        return
    summary.done_now += 1
    summary.rows += outcome.rows
    summary.invalid_rows += outcome.invalid_rows


def failure(summary: Summary, codes: Mapping[str, str], out: Location) -> TeachonceError:
    """The error for units that failed, with the first one's reason and code."""
    key, reason = min(summary.failed.items())
    return UnitsFailed(
        f"{len(summary.failed)} of {counted(summary.units, 'unit')} of {summary.stage} failed, the first is {key}",
        code=codes.get(key, "unit-failed"),
        where=reason,
        hint=None
        if "Next: " in reason
        else f"see `teachonce status {typed(out)}`, mend the cause, run the same command again",
    )
