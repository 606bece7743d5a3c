"""SWAD: the average over the valley of the validation loss, as the paper's algorithm and lists of weights give it."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from teachonce.stages.training.swad import Swad

STEPS = 3  # of a segment


class Weights:
    """Weights that somebody else moves."""

    def __init__(self) -> None:
        self.tensors = {"w": torch.zeros(2, 2), "n": torch.zeros((), dtype=torch.int64)}

    def trained(self):
        return {}

    def changing(self):
        return self.tensors


def expected_valley(losses, converge, tolerance, ratio):
    """First and last segment (from 1), and after which the valley is known to have ended; None without a valley.

    Algorithm 1 of the paper over whole lists; at the end of training, as if losses went on above the threshold.
    """
    for start in range(len(losses) - converge + 1):
        row = losses[start : start + converge]
        if row[0] == min(row):
            break
    else:
        return None
    threshold = max(sum(row) / converge * (1 + ratio), row[0])
    last = start
    while last + 1 < len(losses) and min(losses[last + 1 : last + 1 + tolerance]) <= threshold:
        last += 1
    return start + 1, last + 1, last + tolerance + 1 <= len(losses)


def run(losses, converge, tolerance, ratio, *, kill_at=()):
    """Weights of each segment, and what SWAD made of them; torn down and built anew from its state before some steps."""
    rng, weights = random.Random(1), Weights()
    swad = Swad(weights, converge=converge, tolerance=tolerance, ratio=ratio)
    segments: list[list[torch.Tensor]] = []
    for segment, loss in enumerate(losses):
        segments.append([])
        for step in range(STEPS):
            if segment * STEPS + step in kill_at:
                state = {name: value.clone() for name, value in swad.state().items()}
                swad = Swad(weights, converge=converge, tolerance=tolerance, ratio=ratio)
                swad.load(state)
            weights.tensors["w"].copy_(torch.tensor([[rng.random() for _ in range(2)] for _ in range(2)]))
            weights.tensors["n"].add_(1)
            swad.update()
            segments[-1].append(weights.tensors["w"].double().clone())
        swad.measured(loss)
    return segments, swad


@settings(max_examples=60, deadline=None)
@given(
    losses=st.lists(st.integers(1, 9), min_size=1, max_size=14),
    converge=st.integers(1, 4),
    tolerance=st.integers(1, 5),
    ratio=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_the_valley_is_the_papers(losses, converge, tolerance, ratio):
    segments, swad = run(losses, converge, tolerance, ratio)
    valley, about = expected_valley(losses, converge, tolerance, ratio), swad.about()["swad"]
    if valley is None:
        assert (about["first"], about["last"], about["threshold"], about["ended"]) == (
            len(losses),
            len(losses),
            None,
            False,
        )
        first = last = len(losses)
    else:
        first, last, ended = valley
        assert (about["first"], about["last"], about["ended"]) == (first, last, ended)
        assert swad.is_over == ended
    iterates = [weights for segment in segments[first - 1 : last] for weights in segment]
    torch.testing.assert_close(swad.final()["w"].double(), torch.stack(iterates).mean(dim=0), rtol=0, atol=1e-6)
    assert swad.final()["n"] == last * STEPS


def test_a_valley_by_hand():
    """Falls to 2, then 1.0 is the least of three; the threshold is 1.3 * 1.1; 1.5, 1.6 lie above it, 1.2 does not."""
    losses = [3, 2, 1.0, 1.1, 1.2, 1.5, 1.6, 1.2, 9, 9, 9, 9, 9, 9, 0.1]
    _, swad = run(losses, 3, 6, 0.3)
    about = swad.about()["swad"]
    assert about == {"first": 3, "last": 8, "threshold": pytest.approx(1.43), "ended": True}


@pytest.mark.parametrize("losses", [[3, 2, 1, 1, 2, 1, 9, 1, 9, 9], [3, 2, 1], [1, 1, 9, 9, 9, 9]])
def test_torn_down_at_every_step_it_ends_with_the_same_bytes(losses):
    _, undisturbed = run(losses, 2, 3, 0.3)
    _, torn = run(losses, 2, 3, 0.3, kill_at=range(1, len(losses) * STEPS))
    assert torn.about() == undisturbed.about()
    assert {n: v.numpy().tobytes() for n, v in torn.state().items()} == {
        n: v.numpy().tobytes() for n, v in undisturbed.state().items()
    }


def test_it_keeps_a_few_averages_whatever_the_length_of_training():
    for converge in (1, 3):
        _, swad = run([9 - i / 100 for i in range(60)], converge, 6, 0.3)
        assert len(swad.state()) <= 2 + 2 * converge
    _, swad = run([1] * 60, 3, 6, 0.3)
    assert len(swad.state()) == 2 + 2


def test_a_state_of_other_weights_is_refused():
    _, swad = run([3, 2], 3, 6, 0.3)
    with pytest.raises(KeyError, match="w"):
        swad.load({name: value for name, value in swad.state().items() if not name.endswith("/w")})
    with pytest.raises(ValueError, match="w"):
        swad.load({n: v[:1] if n.endswith("/w") else v for n, v in swad.state().items()})
