"""Ranks that were asked to stop in different steps, or of which one was: all leave off behind the same one."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize(
    ("asked", "expected"),
    [([None, 3], [5, "SIGTERM"]), ([0, None], [2, "SIGUSR1"]), ([6, 4], [6, "SIGTERM"])],
    ids=["the second", "the first", "both"],
)
def test_all_stop_in_the_same_place(together, tmp_path, asked, expected) -> None:
    assert together("stop", tmp_path / "jobs", asked=asked) == [0, 0]
    assert [json.loads((tmp_path / "jobs" / f"{rank}.json").read_text()) for rank in (0, 1)] == [expected] * 2
