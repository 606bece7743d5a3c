"""The runner, with a small real stage that writes files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.pipeline.types import Resources, RunUnit, Seen, Timer, Unit
from teachonce.storage_schemas.errors import IncompleteError, InputError, MismatchError, UnitsFailed
from teachonce.storage_schemas.fingerprint import Fingerprint
from teachonce.storage_schemas.receipt import Output, Receipt


@dataclass(frozen=True, kw_only=True)
class Squares:
    """Writes i squared into a file; fails on the units named in `broken`."""

    out: Location
    count: int
    version: int = 1
    broken: tuple[int, ...] = ()
    units_at_once: int = 1

    name = "squares"

    @property
    def resources(self) -> Resources:
        return Resources(units_at_once=self.units_at_once)

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(fields={"version": self.version, "nested": {"count": self.count}})

    def plan(self) -> Iterator[Unit]:
        for i in range(self.count):
            yield Unit(key=f"{i:03d}", inputs={"i": i})

    def open(self) -> RunUnit:
        def run(unit: Unit, timer: Timer) -> Receipt:
            i = unit.inputs["i"]
            if i in self.broken:
                raise ValueError(f"no square of {i}")
            data = str(i * i).encode()
            with timer("write"):
                (self.out / f"{i}.txt").write_bytes(data)
            output = Output(path=f"{i}.txt", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            return Receipt(
                key=unit.key,
                outputs=(output,),
                rows=1,
                invalid_rows=(),
                digest="d",
                fingerprint=self.fingerprint.digest,
            )

        return run


def run(stage: Squares):
    return run_stage(stage, stage.out, SerialExecutor(), progress=False)


@pytest.fixture
def out(tmp_path) -> Location:
    return Location.of(tmp_path / "out")


@pytest.mark.parametrize("units_at_once", [1, 2])
def test_does_every_unit_once_and_nothing_the_second_time(out, units_at_once):
    stage = Squares(out=out, count=7, units_at_once=units_at_once)
    assert run(stage).done_now == 7
    assert [(out / f"{i}.txt").read_bytes() for i in range(7)] == [str(i * i).encode() for i in range(7)]
    again = run(stage)
    assert (again.done_before, again.done_now) == (7, 0)
    assert Ledger(out, "squares").require_complete("").units == 7


def test_nothing_is_left_of_a_worker_that_was_killed_and_replaced(out):
    class Killed(Squares):
        def open(self) -> RunUnit:
            run = super().open()

            def one(unit: Unit, timer: Timer) -> Receipt | Seen:
                (out / ".0.txt.12345678.tmp").write_bytes(b"half")  # as a killed writer leaves it beside the file
                return run(unit, timer)

            return one

    run(Killed(out=out, count=2))
    assert [name for name in out.entries(deep=True) if name.endswith(".tmp")] == []
    assert not (out / ".0.txt.12345678.tmp").exists()


def test_a_failure_stops_no_other_unit_and_is_recorded_until_it_succeeds(out):
    with pytest.raises(UnitsFailed) as caught:
        run(Squares(out=out, count=5, broken=(1, 3)))
    assert str(caught.value) == (
        f"2 of 5 units of squares failed, the first is 001: ValueError: no square of 1. "
        f"Next: see `teachonce status {out}`, mend the cause, run the same command again"
    )
    ledger = Ledger(out, "squares")
    assert ledger.done_keys() == ["000", "002", "004"]
    assert {k: f["reason"] for k, f in ledger.failures().items()} == {
        "001": "ValueError: no square of 1",
        "003": "ValueError: no square of 3",
    }
    assert "Traceback" in ledger.failures()["001"]["detail"]
    with pytest.raises(IncompleteError) as error:
        ledger.require_complete("go on")
    assert (error.value.code, error.value.what, str(error.value.found), str(error.value.hint)) == (
        "stage-unfinished",
        "squares has not finished",
        "3 of 5 units",
        "go on",
    )
    assert run(Squares(out=out, count=5)).done_now == 2
    assert ledger.failures() == {}


def test_another_fingerprint_is_refused_and_the_field_is_named(out):
    run(Squares(out=out, count=2))
    with pytest.raises(MismatchError) as caught:
        run(Squares(out=out, count=2, version=2))
    assert str(caught.value) == (
        f"{out} holds the output of another squares: {out}/ledger/squares/plan.json: field 'version': expected 2 "
        f"(this command), found 1 (the folder). Next: use the options of the first run, or keep {out} and write elsewhere: --out {out}-2"
    )


def test_a_lost_or_cut_output_is_made_again(out):
    stage = Squares(out=out, count=3)
    run(stage)
    (out / "1.txt").remove()
    (out / "2.txt").path.write_bytes(b"")
    assert run(stage).done_now == 2
    assert (out / "2.txt").read_bytes() == b"4"


def test_an_empty_plan_is_an_error(out):
    with pytest.raises(InputError) as error:
        run(Squares(out=out, count=0))
    assert (error.value.code, error.value.what) == ("nothing-to-do", "squares has nothing to do")


def test_receipts_are_identical_and_timings_are_apart(tmp_path):
    folders = [Location.of(tmp_path / name) for name in "ab"]
    for folder in folders:
        run(Squares(out=folder, count=2))
    receipts = [(f / "ledger/squares/receipts/001.json").read_bytes() for f in folders]
    assert receipts[0] == receipts[1]
    assert Ledger(folders[0], "squares").timings()["write"] > 0


def test_timings_that_a_power_cut_emptied_count_as_none(out):
    run(Squares(out=out, count=2))
    whole = Ledger(out, "squares").timings()["write"]
    (out / "ledger/squares/timings/000.json").path.write_bytes(b"")
    (out / "ledger/squares/timings/001.json").path.write_bytes(b"\0" * 20)
    assert whole > 0
    assert Ledger(out, "squares").timings() == {}
