"""`--workers MIN..MAX`: how it is read, and how a run's workers become more and fewer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner
from teachonce.commands.executor import ExecutorSettings
from teachonce.commands.options import options_of
from teachonce.pipeline import board, progress
from teachonce.pipeline.executors.dispatch import Dispatch
from teachonce.pipeline.executors.unit_queue import UnitQueue
from teachonce.pipeline.executors.worker_group import Opened
from teachonce.pipeline.types import Unit
from teachonce.pipeline.worker_range import WorkerRange
from teachonce.storage_schemas.errors import MismatchError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2..8", WorkerRange(2, 8)), (" 0..1 ", WorkerRange(0, 1)), ("3..3", WorkerRange(3, 3))],
)
def test_ranges(text, expected):
    assert WorkerRange.parse(text) == expected
    assert WorkerRange.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["8..2", "0..0", "2...8", "..8", "2..", "-1..2", "2..8..9", "2.5..3", "3"])
def test_what_is_no_range(text):
    assert WorkerRange.parse(text) is None


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--workers", "3"], "3"),
        (["--workers", "1..3"], "WorkerRange(least=1, most=3)"),
        ([], "None"),
        (["--workers", "0"], "Error: Invalid value for '--workers': 0 is not in the range x>=1."),
        (["--workers", "3..1"], "'3..1' is not MIN..MAX, as 2..8, with a MAX of at least 1 and MIN."),
        (["--workers", "many"], "'many' is not a valid integer"),
    ],
)
def test_the_option(words, found):
    @click.command()
    @options_of("executor", ExecutorSettings)
    def command(executor: ExecutorSettings) -> None:
        print(repr(executor.workers))

    assert found in CliRunner().invoke(command, words).output


class Actor:
    """In the place of a handle of Ray's: what was sent, and whether it was killed."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.killed = False
        self.run = SimpleNamespace(options=lambda name: SimpleNamespace(remote=self._run))
        self.opening = object()

    def _run(self, unit: Unit) -> object:
        self.units.append(unit)
        return object()


@pytest.fixture
def run(monkeypatch):
    """A dispatch whose actors are only asked for: `run(units, workers)`."""
    actors: list[Actor] = []

    def start() -> tuple[Actor, object]:
        actors.append(Actor())
        return actors[-1], actors[-1].opening

    def one(units: int, workers: WorkerRange, units_at_once: int = 1) -> tuple[Dispatch, list[Actor]]:
        monkeypatch.setattr("ray.kill", lambda actor: setattr(actor, "killed", True))
        nothing: Any = SimpleNamespace()
        made = Dispatch(
            start,
            nothing,
            UnitQueue(Unit(key=str(i)) for i in range(units)),
            workers=workers,
            units_at_once=units_at_once,
            unit_timeout=None,
            head=nothing,
            what="starting",
            name_of=str,
            board=board.Board("t", progress.Progress("t", units, 0, "img")),
        )
        return made, actors

    return one


def _opened(made: Dispatch, number: int, refusal: MismatchError | None = None) -> None:
    made._opened(made.group.seats[number], Opened(node=f"n{number}", name=f"node {number}", refusal=refusal))
    for seat in made.group.seats:
        made._feed(seat)
    made._come_and_go()


def test_more_workers_are_asked_for_once_one_is_open_and_as_units_wait(run):
    made, actors = run(4, WorkerRange(1, 10))
    made._come_and_go()
    assert len(actors) == 1
    _opened(made, 0)
    assert [len(actor.units) for actor in actors] == [1, 0, 0, 0]
    _opened(made, 2)
    assert [len(actor.units) for actor in actors] == [1, 0, 1, 0]
    assert not any(actor.killed for actor in actors[:3])
    assert len(made.group.seats) == 4


def test_workers_without_room_keep_no_unit_from_those_that_are_open(run):
    made, actors = run(9, WorkerRange(1, 50), units_at_once=2)
    _opened(made, 0)
    assert len(actors[0].units) == 2
    (seat, *others) = made.group.seats
    assert len(others) == 7
    seat.at_work.popitem()
    made._feed(seat)
    assert len(actors[0].units) == 3


def test_workers_that_nothing_is_left_for_are_let_go_and_the_first_ones_stay(run):
    made, actors = run(3, WorkerRange(1, 3))
    _opened(made, 0)
    _opened(made, 1)
    assert len(made.group.seats) == 3
    for seat in made.group.seats[:2]:
        ((reference, _),) = seat.at_work.items()
        del seat.at_work[reference]
        made._feed(seat)
    made._come_and_go()
    assert [len(actor.units) for actor in actors] == [2, 1, 0]
    assert [actor.killed for actor in actors] == [False, True, True]
    assert [seat.actor for seat in made.group.seats] == [actors[0]]


def test_a_fixed_number_stays(run):
    made, actors = run(9, WorkerRange(2, 2))
    _opened(made, 0)
    assert len(actors) == 2


def test_none_at_the_start_asks_for_one(run):
    made, actors = run(9, WorkerRange(0, 2))
    assert len(actors) == 1
    assert made.group.seats[0].is_extra


REFUSAL = MismatchError("a node has other versions", code="node-versions-differ", where="node 0")


def test_a_refused_node_is_told_once_another_works_and_gets_nothing(run, capsys):
    made, actors = run(9, WorkerRange(3, 3))
    _opened(made, 0, REFUSAL)
    assert capsys.readouterr().err == ""
    _opened(made, 1)
    _opened(made, 2)
    assert capsys.readouterr().err == "t: node 0 does no work: a node has other versions: node 0\n"
    assert [len(actor.units) for actor in actors] == [0, 1, 1]
    assert not actors[0].killed


def test_the_run_ends_where_all_nodes_are_refused(run):
    made, _ = run(9, WorkerRange(2, 5))
    _opened(made, 0, REFUSAL)
    with pytest.raises(MismatchError, match="other versions"):
        _opened(made, 1, REFUSAL)
