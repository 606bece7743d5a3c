"""What `status` tells of a command that is running: for how long and until when, at the pace that it has had."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import pytest
from teachonce.pipeline.driver import Driver
from teachonce.pipeline.ledger import Ledger, Plan
from teachonce.pipeline.storage import Location
from teachonce.stages.reports.running import running_json, running_text
from teachonce.stages.status import folder_status
from teachonce.storage_schemas.fingerprint import Fingerprint
from teachonce.storage_schemas.receipt import Receipt
from teachonce.storage_schemas.target_store import open_root

ZONE = datetime.timezone(datetime.timedelta(hours=2))
NOON = datetime.datetime(2026, 5, 4, 12, tzinfo=ZONE)


def after(minutes: float) -> datetime.datetime:
    return NOON + datetime.timedelta(minutes=minutes)


def begin(out, stage: str, *, units: int, rows: int, **settings) -> Ledger:
    ledger = Ledger(Location.of(out), stage)
    fingerprint = Fingerprint(fields={"settings": settings})
    ledger.begin(Plan(stage=stage, fingerprint=fingerprint, units=units, rows=rows), hint="")
    return ledger


def finish(ledger: Ledger, *minutes: float) -> None:
    """One unit done at each of these minutes after noon."""
    for i, minute in enumerate(minutes):
        receipt = Receipt(key=f"{i:06d}", outputs=(), rows=10, invalid_rows=(), digest="d", fingerprint="f")
        ledger.commit(receipt, {})
        at = after(minute).timestamp()
        os.utime(ledger.folder.path / "receipts" / f"{i:06d}.json", (at, at))


def told(out, stage: str, now: datetime.datetime, training=None, since: str = NOON.isoformat()) -> dict:
    driver = Driver(command=f"teachonce {stage}", host="h", pid=7, since=since)
    return running_json(driver, Location.of(out), training, now=now)


def test_the_end_is_expected_at_the_pace_so_far(tmp_path):
    finish(begin(tmp_path, "cache", units=10, rows=100), -300, -200, 10, 20, 30)
    facts = told(tmp_path, "cache", after(35))
    assert (facts["seconds"], facts["until"]) == (
        35 * 60,
        "2026-05-04T13:20:00+02:00",
    )  # 10 minutes each, 5 left
    line = running_text(facts, "targets", now=after(35))
    assert line == (
        "running: teachonce cache, process 7 on h, since 2026-05-04T12:00:00+02:00, in targets; for 35 min, "
        "about 45 min more, until 13:20"
    )
    assert (
        told(tmp_path, "cache", after(200))["until"] == "2026-05-04T15:20:00+02:00"
    )  # slower than it was: not before now
    assert running_text(facts, "targets", now=after(-900)).endswith("until 2026-05-04 13:20")


@pytest.mark.parametrize(
    ("done", "since"),
    [
        ((), NOON.isoformat()),
        ((-30, -20), NOON.isoformat()),
        ((1, 2, 3, 4), NOON.isoformat()),
        ((1,), "unknown"),
        ((1,), "2026-05-04"),
    ],
)
def test_no_end_is_told_where_none_is_known(tmp_path, done, since):
    finish(begin(tmp_path, "cache", units=4, rows=40), *done)
    facts = told(tmp_path, "cache", after(5), since=since)
    assert facts["until"] is None
    assert "until" not in running_text(facts, "x", now=after(5))
    assert told(tmp_path, "demo", after(5))["until"] is None


def test_a_training_tells_by_its_log(tmp_path):
    begin(tmp_path, "distill", units=1, rows=6000, batch_size=10)
    log = tmp_path / "run" / "log.jsonl"
    log.parent.mkdir()
    line = {"step": 300, "epoch": 1, "loss": 0.5, "samples_per_second": 5.0}
    log.write_text(json.dumps(line) + "\n")
    for minute, until in (
        (2, "2026-05-04T12:12:00+02:00"),
        (-2, None),
    ):  # 3000 samples at 5 in a second; an earlier run's log
        os.utime(log, (after(minute).timestamp(),) * 2)
        assert told(tmp_path, "distill", after(3), line)["until"] == until
    for bad in ({}, {"step": "x", "samples_per_second": 1}, {"step": 1, "samples_per_second": 0}):
        os.utime(log, (after(2).timestamp(),) * 2)
        assert told(tmp_path, "distill", after(3), bad)["until"] is None


def test_stages_come_in_their_order_whatever_was_planned_first(tmp_path):
    for name, stage in (
        ("b", "distill"),
        ("a", "distill"),
        ("targets", "cache"),
        ("targets", "vectors"),
        ("z", "shard"),
    ):
        begin(tmp_path / name, stage, units=1, rows=1)
    open_root(str(tmp_path / "targets"), mode="a")
    stages = [(stage["stage"], Path(stage["folder"]).name) for stage in folder_status(str(tmp_path))["stages"]]
    assert stages == [
        ("shard", "z"),
        ("vectors", "targets"),
        ("cache", "targets"),
        ("distill", "a"),
        ("distill", "b"),
    ]
