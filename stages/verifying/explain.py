"""Owns telling why stored values are not what the teacher gives: hypotheses are tried, and the one that explains them is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...storage_schemas.fingerprint import Json
from ..models.preprocess import Preprocess
from .cause import AGAIN, Cause, Hypothesis
from .differences import Apart, all_apart
from .picture_causes import picture_hypotheses
from .rerun import Rerun, Values
from .value_causes import Evidence, value_causes

#: A hypothesis that does not explain values to rounding is still likely if it brings them so many times nearer than none.
_LIKELY = 5.0


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Why, and how well that explains it.

    Attributes:
        exactly: whether rounding explains all that is left; else the cause is a likely one.
    """

    cause: Cause
    exactly: bool
    facts: Mapping[str, Json]


def explain(evidence: Evidence, rerun: Rerun, own: Preprocess, others: Iterator[Hypothesis]) -> Explained | None:
    """The cause of what is wrong with sampled rows; None where no hypothesis explains it.

    Args:
        evidence: what is stored, and what the teacher gives.
        own: the model's own preprocessing.
        others: hypotheses that the caller has, such as other weights; tried after those about pictures.
    """
    for cause in value_causes(evidence):
        return Explained(cause=cause, exactly=True, facts={})
    base = _distance(evidence, evidence.given)
    best: tuple[float, Cause] | None = None
    for hypothesis in _all(rerun, evidence, own, others):
        given = _tried(hypothesis)
        if given is None:
            continue
        if not any(evidence.off(name, given[name]) for name in evidence.wrong):
            return Explained(cause=hypothesis.cause, exactly=True, facts={"distance": _distance(evidence, given)})
        distance = _distance(evidence, given)
        if best is None or distance < best[0]:
            best = distance, hypothesis.cause
    facts = {"distance_without": base}
    if best is None or best[0] * _LIKELY > base:
        found = all_apart({name: evidence.sample.stored[name] for name in evidence.wrong}, evidence.given)
        if all(evidence.in_bf16[name].allows(each) for name, each in found.items()):
            precision = _other_precision(rerun, evidence).cause
            return Explained(cause=replace(precision, what=f"most likely {precision.what}"), exactly=False, facts=facts)
        return None
    cause = replace(best[1], what=f"most likely {best[1].what}")
    return Explained(cause=cause, exactly=False, facts={"distance": best[0], **facts})


def _all(rerun: Rerun, evidence: Evidence, own: Preprocess, others: Iterator[Hypothesis]) -> Iterator[Hypothesis]:
    yield from picture_hypotheses(rerun, evidence.sample, own)
    yield _other_precision(rerun, evidence)
    yield from others


def _other_precision(rerun: Rerun, evidence: Evidence) -> Hypothesis:
    precision = "bf16" if rerun.compute.precision == "fp32" else "fp32"
    compute = replace(rerun.compute, precision=precision)
    return Hypothesis(
        cause=Cause(
            code="teacher-other-precision",
            what="the teacher ran in another precision than the store says",
            hint=AGAIN,
            expected=rerun.compute.precision,
            found=precision,
        ),
        values=lambda: rerun.values(rerun.pixels(evidence.sample), evidence.sample.names, compute),
    )


def _tried(hypothesis: Hypothesis) -> Values | None:
    try:
        return hypothesis.values()
    except (RuntimeError, ValueError, AssertionError, TypeError):
        return None  # a model that does not take such pictures


def _distance(evidence: Evidence, given: Values) -> float:
    """The median of 1 - cosine, of the wrong target that is worst."""
    stored = {name: evidence.sample.stored[name] for name in evidence.wrong}
    found: dict[str, Apart] = all_apart(stored, given)
    return max(float(np.median(each.cosine_M)) for each in found.values())
