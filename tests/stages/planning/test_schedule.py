"""Hours, workers and money of a plan, against numbers worked out by hand."""

from __future__ import annotations

import pytest
from teachonce.pipeline.types import Resources
from teachonce.stages.planning.figures import Basis, Figure
from teachonce.stages.planning.money import money
from teachonce.stages.planning.schedule import Schedule
from teachonce.stages.planning.training import Feed, costs
from teachonce.stages.settings.plan import PlanSettings
from teachonce.storage_schemas.errors import InputError


def measured(value: float) -> Figure:
    return Figure(value=value, basis=Basis.MEASURED)


def schedule(**changed) -> Schedule:
    """10 shards of 100 rows, the last one of 40, in 2 views at 20 views a second: 10 s a shard. 30 s to start."""
    facts = {"shards": 10, "rows": 100, "all_rows": 940, "views": 2, "rate": measured(20), "start": measured(30)}
    return Schedule(**{**facts, **changed})


@pytest.mark.parametrize(
    ("workers", "seconds"),
    [
        (1, 30 + 94),
        (2, 30 + 50),
        (3, 30 + 30 + 4),
        (4, 30 + 30),
        (5, 30 + 20),
        (9, 30 + 10 + 4),
        (10, 30 + 10),
        (50, 30 + 10),
    ],
)
def test_shards_are_handed_out_whole(workers, seconds) -> None:
    assert schedule().seconds(workers).value == pytest.approx(seconds)


def test_nothing_left_takes_no_time() -> None:
    assert schedule(shards=0, all_rows=0).seconds(3).value == 0


@pytest.mark.parametrize(("seconds", "workers"), [(124, 1), (123, 2), (80, 2), (79, 3), (59, 5), (40, 10)])
def test_the_fewest_workers_for_a_deadline(seconds, workers) -> None:
    assert schedule().workers_for(seconds / 3600) == workers


def test_a_deadline_that_no_number_of_workers_meets() -> None:
    with pytest.raises(InputError) as error:
        schedule().workers_for(0.01)
    assert str(error.value) == (
        "no number of workers meets the deadline: --deadline 0.01: expected at least 0.0111 hours: 30 s to start, and "
        "10 s for one shard, found 0.01 hours, for 10 shards. Next: give it more time; or, where shards are not made yet, "
        "a smaller --shard-size"
    )


def test_a_figure_is_no_surer_than_its_parts() -> None:
    table = Figure(value=1, basis=Basis.TABLE)
    assert Figure.of(3, measured(1), None, table).basis == Basis.TABLE
    assert Figure.of(3).basis == Basis.COUNTED
    assert schedule(start=table).seconds(1).basis == Basis.TABLE


def test_what_a_students_steps_need() -> None:
    feed = Feed(
        images_per_second=Figure(value=500, basis=Basis.STATED),
        image_bytes=measured(10_000),
        target_bytes=Figure(value=2_000, basis=Basis.COUNTED),
        pairs_per_core=measured(120),
    )
    assert feed.bytes_per_second == Figure(value=6_000_000, basis=Basis.STATED)
    assert feed.cores == Figure(value=5, basis=Basis.STATED)


def test_costs_against_the_teacher_in_every_step() -> None:
    found = costs(teacher=measured(800), rows=100, views=4, epochs=10, students=2, rate=measured(5))
    assert found.once == 800
    assert found.online == 2000
    assert found.break_even == 0.4
    assert found.students == (200, 200)
    assert found.speed_up == (2 * 2000 + 400) / (800 + 400)


def test_money_by_hand() -> None:
    prices = PlanSettings(price_gpu_hour=2, price_gb_month=0.5, price_requests=0.01)
    found = money(
        prices,
        teacher_seconds=measured(7200),
        online_seconds=None,
        student_seconds=measured(1800),
        kept_bytes=measured(3e9),
        written=50_000,
        read=None,
    )
    assert found.teacher_once == Figure(value=4, basis=Basis.STATED)
    assert found.teacher_online is None
    assert found.students == Figure(value=1, basis=Basis.STATED)
    assert found.keep_a_month == Figure(value=1.5, basis=Basis.STATED)
    assert found.write_requests == Figure(value=0.5, basis=Basis.STATED)
    assert found.read_requests is None
    assert money(
        PlanSettings(),
        teacher_seconds=measured(1),
        online_seconds=None,
        student_seconds=None,
        kept_bytes=measured(1),
        written=1,
        read=1,
    ).is_empty


def test_workers_of_this_machine_are_those_that_ray_would_start(monkeypatch) -> None:
    from teachonce.commands.executor import ExecutorSettings
    from teachonce.pipeline import cores

    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    assert ExecutorSettings().workers_here(Resources(cpus=3)) == 2
    assert ExecutorSettings(workers=5).workers_here(Resources(cpus=3)) == 5
    assert ExecutorSettings(executor="serial").workers_here(Resources(cpus=1)) == 1
    assert ExecutorSettings(ray_address="auto").workers_here(Resources(cpus=1)) == 1
    assert ExecutorSettings().workers_here(Resources(cpus=1, gpus=1.0)) == 1
