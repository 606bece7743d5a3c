"""What is shown of work that goes on: what starts, counts that are exact, rates of the work alone; nothing twice."""

from __future__ import annotations

import io
import sys
import warnings

import pytest
from teachonce.pipeline import progress, terminal
from teachonce.pipeline.board import Board
from teachonce.pipeline.captured_stderr import CapturedStderr
from teachonce.pipeline.progress import Progress
from teachonce.pipeline.types import Timer
from teachonce.pipeline.worker import Outcome


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch) -> Terminal:
    """Not as a fixture: pytest takes stderr back before the test itself."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr  # type: ignore[return-value]


def shown(screen: Terminal) -> list[str]:
    """The lines that a terminal shows in the end."""
    lines = [""]
    column = 0
    for c in screen.getvalue():
        if c == "\n":
            lines.append("")
            column = 0
        elif c == "\r":
            column = 0
        else:
            lines[-1] = lines[-1][:column].ljust(column) + c + lines[-1][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def test_start_up_and_what_was_done_before_count_in_no_rate(clock, capfd):
    with Progress("cache", 1000, 400) as bar:
        clock.seconds += 3600
        bar.advance(100)
        clock.seconds += 20
        bar.advance(100)
    said = capfd.readouterr().err.splitlines()
    assert said == ["cache: 500/1000 img", "cache: 600/1000 img, 5.0 img/s, 80 s left"]


def test_no_line_comes_twice(clock, capfd):
    with Progress("vectors", 1000) as bar:
        clock.seconds += 30
        bar.advance(1000)
    assert capfd.readouterr().err.splitlines() == ["vectors: 1000/1000 img"]


@pytest.mark.parametrize(("seconds", "said"), [(0, []), (30, ["rows: 100/1000 img", "rows: 1000/1000 img"])])
def test_brief_work_is_told_where_it_takes_long(clock, capfd, seconds, said):
    with Progress("rows", 1000, brief=True) as bar:
        clock.seconds += seconds
        bar.advance(100)
        bar.advance(900)
    assert capfd.readouterr().err.splitlines() == said


def test_nothing_done_says_nothing(clock, capfd):
    with Progress("cache", 10) as bar:
        bar.starting("starting Ray")
        clock.seconds += 1
        bar.reach(0)
    assert capfd.readouterr().err == ""


def test_elsewhere_than_on_a_terminal_a_long_start_is_one_line(clock, capfd):
    with Progress("cache", 10) as bar:
        for _ in range(50):
            clock.seconds += 1
            bar.starting("starting 2 workers")
        bar.advance(10)
        bar.starting("too late")
    assert capfd.readouterr().err.splitlines() == ["cache: starting 2 workers", "cache: 10/10 img"]


def test_on_a_terminal_what_starts_is_replaced(monkeypatch):
    screen = on_terminal(monkeypatch)
    with Progress("cache", 10) as bar:
        bar.starting("starting Ray on this machine")
        assert shown(screen) == ["cache: starting Ray on this machine"]
        bar.starting("loading")
        assert shown(screen) == ["cache: loading"]
        terminal.say("cache: a note")
        assert shown(screen) == ["cache: a note", ""]
        bar.starting("loading it")
        bar.advance(4)
        terminal.say("a warning")
        bar.advance(6)
    note, warning, last, end = shown(screen)
    assert (note, warning, end) == ("cache: a note", "a warning", "")
    assert last.startswith("cache: 100%|")
    assert "10/10" in last
    assert screen.getvalue().count("10/10") == 1


def test_what_starts_is_cut_at_the_width_and_harmless(monkeypatch):
    screen = on_terminal(monkeypatch)
    terminal.starting("cache: \x1b[2J " + "long " * 20)
    assert shown(screen) == [("cache: \\x1b[2J " + "long " * 20)[:79].rstrip()]
    terminal.clear()
    assert shown(screen) == [""]


def outcome(key: str, rows: int, error: str | None = None) -> Outcome:
    return Outcome(key=key, rows=rows, error=error)


def test_a_board_counts_exactly_whatever_was_told_before(clock, capfd):
    """Units that start anew, that fail, that end without a last word, that were done before."""
    with Progress("cache", 100, 20) as bar:
        board = Board("cache", bar, 20)
        board.at("a", 5)
        board.at("b", 20)
        board.at("a", 0)  # its worker died
        board.settle(outcome("b", 30))
        board.at("a", 10)
        board.at("c", 7)
        board.settle(outcome("c", 40, error="no"))
        board.settle(outcome("a", 10))
    assert capfd.readouterr().err.splitlines() == ["cache: 60/100 img, 1 failed"]


def test_a_stage_that_shows_samples_itself_shows_them_once(clock, capfd):
    with Progress("distill", 100) as bar:
        board = Board("distill", bar, counts=False)
        board.at("student", 50)
        board.settle(outcome("student", 100))
        board.say("distill: 100/100 img")
        board.say("UserWarning: odd")
    assert capfd.readouterr().err.splitlines() == ["distill: 100/100 img", "distill: UserWarning: odd"]


def test_a_timer_tells_how_far_its_unit_is():
    told: list[int] = []
    timer = Timer(told.append)
    for samples in (1, 3, 2):
        timer.advance(samples)
    assert told == [1, 4, 6]


def test_what_a_worker_writes_is_kept_as_lines_and_still_written(capfd):
    captured_stderr = CapturedStderr()
    print("a warning", file=captured_stderr)
    print("10%\r20%\r", end="", file=captured_stderr)
    print("100%\n  \nhalf", end="", file=captured_stderr)
    assert captured_stderr.take() == ("a warning", "100%")
    print(" a line\r", file=captured_stderr)
    assert captured_stderr.take() == ("half a line",)
    assert captured_stderr.take() == ()
    assert capfd.readouterr().err == "a warning\n10%\r20%\r100%\n  \nhalf a line\r\n"


def test_a_python_warning_is_one_line(capfd, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    terminal.one_line_warnings()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning(UserWarning("two\nlines \x1b[2J"), UserWarning, "/far/away.py", 7)
    assert capfd.readouterr().err == "UserWarning: two lines \\x1b[2J (away.py, line 7)\n"


def test_a_terminal_without_a_size_shows_a_bar():
    """Some containers' have none, and tqdm then shows nothing."""
    assert terminal.bar_width() == {"ncols": 80, "nrows": 24}
