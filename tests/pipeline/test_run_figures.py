"""The figures of a run, against sums worked out by hand: what bounded it, who was busy, what failed; and that advice names real options."""

from __future__ import annotations

import re
import time

import pytest
from teachonce.cli import main
from teachonce.pipeline import advice as advice_module
from teachonce.pipeline import run_figures
from teachonce.pipeline.advice import advice
from teachonce.pipeline.kinds_of_time import bottleneck_of
from teachonce.pipeline.run_figures import RunFigures
from teachonce.pipeline.worker import Effort, Outcome


def outcome(key="000000", *, took=2.0, began=100.0, worker="cache worker 1", error=None, code=None, rows=10, **seconds):
    effort = Effort(
        node="a", process=1, worker=worker, began=began, took=took, seconds=seconds, bytes_written=0 if error else 50
    )
    return Outcome(key=key, rows=rows, error=error, code=code, effort=effort)


def test_sums_busy_share_and_what_bounded_it():
    figures = RunFigures(stage="cache", gpus=True)
    figures.add(outcome(forward=1.0, wait=0.9, decode=3.0, read=0.1))
    figures.add(outcome("000001", took=4.0, worker="cache worker 2", forward=1.0, wait=2.9, decode=8.0, read=0.2))
    facts = figures.to_json()
    assert (facts["units"], facts["samples"], facts["bytes"], facts["workers"]) == (2, 20, 100, 2)
    assert facts["busy"] == pytest.approx((1 + 1) / (2 + 4), abs=1e-4)
    assert facts["busy_what"] == "gpu"
    assert facts["bounded_by"] == "decode"  # the model waits, and of what passes beside it decoding is the longest
    assert facts["advice"] == advice("cache", "decode")
    assert [one["unit"] for one in facts["slowest"]] == ["000001", "000000"]
    text = [" ".join(line.split()) for line in figures.text().splitlines()]
    assert "the GPU at work 33% of the time" in text
    assert any(
        line.startswith("bounded by decoding; to change that: give each worker more --decode-workers") for line in text
    )


def test_time_of_one_worker_counts_once_however_many_units_it_has_at_hand():
    figures = RunFigures(stage="cache")
    for key in ("000000", "000001"):
        figures.add(outcome(key, took=4.0, forward=2.0))
    assert figures.busy == pytest.approx(1.0)
    assert (figures.to_json()["busy_what"], figures.bounded_by) == ("model", "forward")
    assert figures.to_json()["advice"] == "use --device cuda, or --precision bf16"


def test_a_worker_s_time_is_from_its_first_unit_to_the_end_of_its_last():
    figures = RunFigures(stage="cache")
    for began, took in ((10.0, 2.0), (4.0, 3.0), (11.0, 4.0), (12.0, 1.0)):
        figures.add(outcome(began=began, took=took, forward=1.0))
    assert figures.busy == pytest.approx(4 / (15 - 4))


def test_failures_are_counted_by_what_they_are_and_do_not_grow():
    figures = RunFigures(stage="shard")
    for i in range(200):
        figures.add(outcome(f"{i:06d}", error=f"a file has changed: {i}.jpg (expected 5)", code="file-changed"))
    for i in range(100):
        figures.add(Outcome(key=f"x{i}", rows=1, error=f"odd {i}"))  # its process ended: nobody knows what it took
    entries = figures.to_json()["failures"]
    assert entries[0] == {"reason": "a file has changed", "code": "file-changed", "count": 200, "first": "000000"}
    assert len(entries) <= 21
    assert sum(entry["count"] for entry in entries) == figures.to_json()["failed"] == 300
    assert figures.done == 0
    assert len(figures.to_json()["slowest"]) == 5


def test_a_run_that_is_over_soon_after_it_started_was_bounded_by_that(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    figures = RunFigures(stage="cache")
    now[0] = 10.0
    figures.add(outcome(took=2.0, forward=2.0))
    assert (figures.to_json()["starting"], figures.bounded_by) == (8.0, "starting")
    now[0] = 30.0
    figures.add(outcome("000001", took=2.0, forward=2.0))
    assert figures.bounded_by == "forward"


@pytest.mark.parametrize("long", [False, True])
def test_people_are_told_of_long_runs_alone(long, monkeypatch, capsys):
    monkeypatch.setattr(run_figures, "SECONDS_TO_TELL", -1.0 if long else 1e9)
    figures = RunFigures(stage="shard")
    figures.tell()
    assert capsys.readouterr().err == ""  # nothing was done
    figures.add(outcome(write=1.0))
    figures.tell()
    assert capsys.readouterr().err.startswith("shard: figures of this run\n  took") == long


@pytest.mark.parametrize(
    ("seconds", "kind"),
    [
        ({}, None),
        ({"read": 2, "write": 1}, "read"),
        ({"wait": 1, "forward": 2, "decode": 9}, "forward"),
        ({"wait": 3, "forward": 2, "decode": 9, "read": 1}, "decode"),
        ({"wait": 3, "train": 2}, "wait"),
    ],
)
def test_the_bottleneck_is_what_the_rest_waits_for(seconds, kind):
    assert bottleneck_of(seconds) == kind


def test_advice_names_options_that_the_command_has():
    for command, kinds in advice_module._ADVICE.items():
        options = {name for parameter in main.commands[command].params for name in parameter.opts}
        for text in [*kinds.values(), advice_module._START]:
            of_others = set(re.findall(r"`teachonce (\S+) (--[a-z-]+)`", text))
            own = set(re.findall(r"--[a-z-]+", text)) - {option for _, option in of_others}
            assert own <= options, (command, text)
            for other, option in of_others:
                assert option in {name for parameter in main.commands[other].params for name in parameter.opts}
    assert advice("import", "write") is None
