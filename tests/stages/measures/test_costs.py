"""What teacher and students cost, against numbers worked out by hand."""

from __future__ import annotations

import pytest
from teachonce.stages.measures.costs import Costs


def costs(**changed) -> Costs:
    """100 images in 4 views took 8 s: 20 ms a view. One run of the text tower: 0.5 s. 10 epochs of 25 steps."""
    facts = {
        "device": "cuda",
        "pretrain": 60.0,
        "text": 0.5,
        "images": 8.0,
        "samples": 100,
        "views": 4,
        "students": (30.0, 32.0, 34.0),
        "student_device": "cuda",
        "steps": 250,
        "epochs": 10,
    }
    return Costs(**{**facts, **changed})


def test_the_teacher_once_and_online_by_hand() -> None:
    assert costs().once == 4 * 100 * 0.02 + 0.5 == 8.5
    assert costs().online == 10 * 100 * 0.02 + 250 * 0.5 == 145.0
    assert costs().break_even == pytest.approx(8.5 / 145)


def test_the_speed_up_of_three_runs_by_hand() -> None:
    # Online: 3 * 145 + 30 + 32 + 34 = 531 s. Once: 8.5 + 96 = 104.5 s.
    assert costs().speed_up == pytest.approx(531 / 104.5)


def test_a_view_for_each_epoch_pays_with_the_first_run_unless_the_text_tower_costs_nothing() -> None:
    assert costs(views=10, images=20.0).break_even == pytest.approx(20.5 / 145)
    assert costs(views=10, images=20.0, text=0.0).break_even == 1


def test_more_views_than_epochs_pay_later() -> None:
    late = costs(views=40, images=80.0, text=0.0)
    assert late.break_even == 4
    assert late.speed_up == pytest.approx((3 * 20 + 96) / (80 + 96))


def test_json_says_what_is_predicted() -> None:
    facts = costs().to_json()
    assert facts["predicted_teacher_online_seconds"] == 145
    assert facts["predicted_speed_up"] == costs().speed_up
    assert facts["teacher_once_seconds"] == 8.5
