"""Owns small runs of real stages in a scratch folder: what they write is measured, and thrown away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ...pipeline.cores import assign_cores, usable_cores
from ...pipeline.ledger import Ledger, Plan
from ...pipeline.storage import Location
from ...pipeline.types import Resources, Stage, Timer
from ...storage_schemas.receipt import Receipt


def run_here(stage: Stage, out: Location) -> dict[str, float]:
    """Do all units of a stage in this thread, with their receipts. Returns the seconds by kind of work.

    Raises:
        TeachonceError: whatever a unit raised.
    """
    ledger, timer = begin(stage, out), Timer()
    run = stage.open()
    try:
        for unit in stage.plan():
            receipt = run(unit, timer)
            assert isinstance(receipt, Receipt), "a stage that only looks has no ledger"
            ledger.commit(receipt, timer.seconds)
    finally:
        getattr(run, "close", lambda: None)()
    return timer.seconds


def begin(stage: Stage, out: Location) -> Ledger:
    """A ledger with the stage's plan."""
    ledger, units = Ledger(out, stage.name), list(stage.plan())
    rows = sum(unit.rows for unit in units)
    ledger.begin(Plan(stage=stage.name, fingerprint=stage.fingerprint, units=len(units), rows=rows), hint="")
    return ledger


def folder_bytes(folder: Location) -> tuple[int, int]:
    """(files, their bytes) below a folder."""
    sizes = [(folder / name).size() or 0 for name in folder.entries(deep=True)]
    return len(sizes), sum(sizes)


@contextlib.contextmanager
def cores_of_a_worker(needs: Resources, on_ray: bool) -> Iterator[None]:
    """Inside, this process has the cores that a worker has: on Ray those that it asks for, with a GPU all that are left to it."""
    if on_ray and not needs.gpus:
        assign_cores(min(needs.cpus, usable_cores()))
    try:
        yield
    finally:
        assign_cores(None)
