"""Times between two lines of a training's log, by a clock that the test moves."""

from __future__ import annotations

import pytest
import torch
from teachonce.pipeline.types import Timer
from teachonce.stages.training import window as module
from teachonce.stages.training.ranks import Ranks
from teachonce.stages.training.window import Window


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(module, "time", moved)
    return moved


def step(window: Window, clock: Clock, *, waited: float, computed: float) -> None:
    clock.now += waited
    window.resume(waited)
    clock.now += computed
    window.add(loss=torch.tensor(1.0))
    window.pause()


def test_time_of_other_students_is_neither_waiting_nor_training(clock: Clock) -> None:
    timer = Timer()
    window = Window(timer, Ranks())
    clock.now += 50.0  # the others' steps, before this one joins them
    for _ in range(4):
        step(window, clock, waited=1.0, computed=2.0)
        clock.now += 5.0  # other students
    clock.now -= 5.0
    figures = window.close(samples=8, step=4, epoch=0)
    assert timer.seconds == {"wait": pytest.approx(4.0), "train": pytest.approx(8.0)}
    assert figures["samples_per_second"] == pytest.approx(4 * 8 / (4 * 3.0 + 3 * 5.0))  # as fast as steps came
    assert figures["wait_share"] == pytest.approx(4.0 / 27.0)


def test_what_is_between_a_line_and_a_restart_is_not_counted(clock: Clock) -> None:
    timer = Timer()
    window = Window(timer, Ranks())
    step(window, clock, waited=1.0, computed=2.0)
    window.close(samples=8, step=1, epoch=0)
    clock.now += 7.0  # a checkpoint
    window.restart()
    window.pause()
    step(window, clock, waited=1.0, computed=2.0)
    assert window.close(samples=8, step=2, epoch=0)["samples_per_second"] == pytest.approx(8 / 3.0)
    assert timer.seconds == {"wait": pytest.approx(2.0), "train": pytest.approx(4.0)}
