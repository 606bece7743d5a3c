"""Owns the run of a stage: plan minus receipts, mapped by an executor; every failure collected, and shown by the exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from ..storage_schemas.errors import InputError, TeachonceError, UnitsFailed
from ..storage_schemas.plain_text import counted, plural, typed
from .board import Board
from .driver import only_driver
from .ledger import Ledger, Plan, noun_of
from .output import another_output
from .progress import Progress
from .storage import Location
from .types import Stage, Unit
from .worker import Outcome

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
        units: units in the plan.
        done_before: units whose receipts were there already.
        done_now: units finished by this run.
        failed: failed unit keys with one-line reasons.
        rows: rows of the units finished by this run.
        invalid_rows: those of them that could not be used.
        all_rows: rows of all units that are done.
        unusable: those of them that could not be used, by kind of reason, the most frequent first.
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


def run_stage(stage: Stage, out: Location, executor: Executor, *, progress: bool = True) -> Summary:
    """Do every unit of `stage` that has no intact receipt under `out`.

    Raises:
        BusyError: another process does so.
        MismatchError: `out` holds work of another fingerprint.
        InputError: the plan is empty, or not one row of it can be used.
        UnitsFailed: some units failed; the others are committed.
    """
    with only_driver(out, f"teachonce {stage.name}"):
        return _run(stage, out, executor, progress=progress)


def _run(stage: Stage, out: Location, executor: Executor, *, progress: bool) -> Summary:
    ledger = Ledger(out, stage.name)
    units = rows = 0
    for unit in stage.plan():
        units, rows = units + 1, rows + unit.rows
    if units == 0:
        raise InputError(
            f"{stage.name} has nothing to do",
            code="nothing-to-do",
            where=out,
            hint="give it a corpus with images",
        )
    ledger.begin(
        Plan(stage=stage.name, fingerprint=stage.fingerprint, units=units, rows=rows),
        hint=f"use the options of the first run, or {another_output(out, stage.name)}",
    )
    summary = Summary(stage=stage.name, units=units)
    done = _intact_keys(ledger)
    summary.done_before = len(done)
    codes: dict[str, str] = {}
    if summary.done_before < units:
        done_rows = sum(unit.rows for unit in stage.plan() if unit.key in done)
        left = (unit for unit in stage.plan() if unit.key not in done)
        title = stage.name if not done else f"{stage.name} (resumed)"
        noun = noun_of(stage.name)
        with Progress(title, rows, done_rows, "img" if noun == "image" else plural(noun)) as bar:
            board = Board(stage.name, bar, done_rows, counts=progress)
            for outcome in executor.map(stage, ledger, left, board):
                _count(summary, outcome)
                if outcome.code is not None:
                    codes[outcome.key] = outcome.code
                board.settle(outcome)
        out.remove_temporaries()  # of a worker that was killed and replaced
    if summary.failed:
        raise _failure(summary, codes, out)
    _count_unusable(summary, ledger)
    if 0 < summary.all_rows == sum(summary.unusable.values()):
        raise InputError(
            "not one image can be used",
            code="images-none-usable",
            where=out,
            expected="at least one usable image",
            found=summary.reasons,
            hint=f"see `teachonce status {typed(out)}`",
        )
    return summary


def _count_unusable(summary: Summary, ledger: Ledger) -> None:
    kinds: Counter[str] = Counter()
    for receipt in ledger.receipts():
        summary.all_rows += receipt.rows
        kinds.update(bad.kind for bad in receipt.invalid_rows)
    summary.unusable = dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))


def _intact_keys(ledger: Ledger) -> set[str]:
    return {receipt.key for receipt in ledger.receipts() if ledger.is_intact(receipt)}


def _count(summary: Summary, outcome: Outcome) -> None:
    if outcome.error is not None:
        summary.failed[outcome.key] = outcome.error
        return
    summary.done_now += 1
    summary.rows += outcome.rows
    summary.invalid_rows += outcome.invalid_rows


def _failure(summary: Summary, codes: dict[str, str], out: Location) -> TeachonceError:
    key, reason = min(summary.failed.items())
    return UnitsFailed(
        f"{len(summary.failed)} of {counted(summary.units, 'unit')} of {summary.stage} failed, the first is {key}",
        code=codes.get(key, "unit-failed"),
        where=reason,
        hint=None
        if "Next: " in reason
        else f"see `teachonce status {typed(out)}`, mend the cause, run the same command again",
    )
