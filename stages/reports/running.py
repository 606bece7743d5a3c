"""Owns the report on a command that is running: for how long, and until when, estimated from its progress."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from typing import Any

from ...pipeline.driver import Driver
from ...pipeline.ledger import Ledger, Plan
from ...pipeline.storage import Location
from ...pipeline.tables import seconds_text
from ...storage_schemas.fingerprint import Json


def running_json(
    driver: Driver, out: Location, training: dict[str, Any] | None, *, now: datetime.datetime
) -> dict[str, Json]:
    """The fields of the driver; `seconds` since it started, and `until`, local time in ISO 8601; None where unknown.

    Args:
        driver: who is writing to `out`.
        training: the last line of the training log there, if there is one.
        now: with its offset.
    """
    since = _moment(driver.since)
    end = None if since is None else _expected_end(driver, out, training, since, now)
    return {
        **asdict(driver),
        "seconds": None if since is None else max(0, round((now - since).total_seconds())),
        "until": None if end is None else end.astimezone(now.tzinfo).isoformat(timespec="seconds"),
    }


def running_text(facts: dict[str, Any], folder: str, *, now: datetime.datetime) -> str:
    """`running_json` on one line."""
    driver = Driver(**{name: facts[name] for name in ("command", "host", "pid", "since")})
    text = f"running: {driver}, in {folder}"
    if facts["seconds"] is not None:
        text += f"; for {seconds_text(facts['seconds'])}"
    until = _moment(facts["until"] or "")
    if until is None:
        return text
    clock = until.strftime("%H:%M") if until.date() == now.date() else until.strftime("%Y-%m-%d %H:%M")
    return f"{text}, about {seconds_text((until - now).total_seconds())} more, until {clock}"


def _expected_end(
    driver: Driver,
    out: Location,
    training: dict[str, Any] | None,
    since: datetime.datetime,
    now: datetime.datetime,
) -> datetime.datetime | None:
    """At the pace that it has had; never before now. None before there is one, and where it does units of no ledger."""
    ledger = Ledger(out, driver.command.rpartition(" ")[2])
    plan = ledger.plan()
    if plan is None:
        return None
    by_log = _by_log(plan, out, training, since)
    end = by_log if by_log is not None else _by_receipts(ledger, plan, since)
    return None if end is None else max(end, now)


def _by_receipts(ledger: Ledger, plan: Plan, since: datetime.datetime) -> datetime.datetime | None:
    keys = ledger.done_keys()
    times = [datetime.datetime.fromtimestamp(at, since.tzinfo) for at in ledger.done_at()]
    lately = [at for at in times if at >= since]
    left = plan.units - len(keys)
    if not lately or left <= 0:
        return None
    return max(lately) + (max(lately) - since) / len(lately) * left


def _by_log(
    plan: Plan, out: Location, training: dict[str, Any] | None, since: datetime.datetime
) -> datetime.datetime | None:
    """A training is one unit: its log shows how far it is, and how fast."""
    if training is None:
        return None
    written = (out / "run" / "log.jsonl").changed_at()
    if written is None:
        return None
    at = datetime.datetime.fromtimestamp(written, since.tzinfo)
    try:
        done = training["step"] * plan.fingerprint.fields["settings"]["batch_size"]
        left = datetime.timedelta(seconds=max(0, plan.rows - done) / training["samples_per_second"])
    except (KeyError, TypeError, ZeroDivisionError, OverflowError):
        return None  # no line of ours
    return at + left if at >= since else None


def _moment(text: str) -> datetime.datetime | None:
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None
