"""Units that were at work when a process ended are tried alone, after all others, and a few times only."""

from __future__ import annotations

import pytest
from teachonce.pipeline import stopping
from teachonce.pipeline.executors.unit_queue import TRIES, UnitQueue
from teachonce.pipeline.types import Unit


def _units(*keys: str) -> list[Unit]:
    return [Unit(key=key) for key in keys]


def _take(queue: UnitQueue, at_hand: int = 0, idle: int = 0) -> str | None:
    unit = queue.take(at_hand=at_hand, idle=idle)
    return None if unit is None else unit.key


def test_every_worker_gets_its_first_unit_before_any_gets_a_second():
    queue = UnitQueue(_units("a", "b", "c"))
    assert _take(queue, idle=1) == "a"
    assert _take(queue, at_hand=1, idle=2) is None
    assert _take(queue, at_hand=1, idle=1) == "b"
    assert _take(queue, idle=1) == "c"
    assert queue.waiting(1) == 0


def test_suspects_come_last_and_alone_and_are_given_up():
    a, b, c = _units("a", "b", "c")
    queue = UnitQueue(iter([a, b, c]))
    taken = [queue.take(at_hand=n, idle=0) for n in range(2)]
    assert taken == [a, b]
    assert [queue.died(unit) for unit in (a, b)] == [None, None]
    assert _take(queue) == "c"
    assert _take(queue, at_hand=1) is None
    for _ in range(TRIES - 2):
        assert _take(queue) == "a"
        assert queue.is_suspect(a)
        assert queue.died(a) is None
        assert _take(queue) == "b"
        queue.give_back(b)
        assert _take(queue) == "b"
        queue.give_back(b)
        queue.take(at_hand=0, idle=0)
        assert queue.died(b) is None
    assert _take(queue) == "a"
    assert queue.died(a) == TRIES
    assert _take(queue) == "b"
    queue.finished(b)
    assert not queue.is_suspect(b)
    assert queue.waiting(5) == 0


def test_a_unit_of_a_node_that_is_gone_comes_next_and_is_no_suspect():
    a, b = _units("a", "b")
    queue = UnitQueue([a, b])
    queue.take(at_hand=0, idle=0)
    queue.give_back(a)
    assert queue.waiting(5) == 2
    assert _take(queue) == "a"
    assert not queue.is_suspect(a)


@pytest.fixture
def stop_asked(monkeypatch):
    monkeypatch.setattr(stopping, "_asked", "SIGTERM")


def test_a_stop_leaves_all_that_has_not_begun(stop_asked):
    queue = UnitQueue(_units("a"))
    assert queue.waiting(1) == 0
    assert _take(queue) is None
