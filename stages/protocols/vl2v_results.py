"""Owns the results of a benchmark of VL2V-ADiP: accuracies on domains that were left out, and what one pass of the teacher served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ...pipeline.ledger import Ledger
from ...storage_schemas.fingerprint import Json
from ..measures.training_time import training_time
from .domain_request import DomainRequest, Run
from .results import Failure


@dataclass(frozen=True, kw_only=True)
class DomainRun:
    """One student.

    Attributes:
        accuracy: on the domain that was left out, a share of 1, over so many images; unusable ones are beside them.
        origins: what the bundles of both stages record.
    """

    run: Run
    bundle: str
    accuracy: float
    images: int
    unusable: int
    origins: tuple[Mapping[str, Any], ...]


def facts_of(request: DomainRequest, runs: Sequence[DomainRun], failures: Sequence[Failure]) -> dict[str, Json]:
    """All results, as JSON. Accuracies are shares of 1; `std` is the sample's, null for one seed."""
    rows = []
    for domain in request.left_out:
        own = [done for done in runs if done.run.domain == domain]
        if own:
            rows.append(
                {
                    "left_out": domain,
                    "seeds": [done.run.seed for done in own],
                    **_over_seeds([done.accuracy for done in own]),
                    "images": own[0].images,
                    "unusable_images": own[0].unusable,
                    "runs": [_run_json(done) for done in own],
                }
            )
    by_seed = [
        [done.accuracy for done in runs if done.run.seed == seed]
        for seed in request.seeds
        if sum(done.run.seed == seed for done in runs) == len(request.left_out)
    ]
    return {
        "protocol": "leave one domain out",
        "dataset": request.dataset,
        "domains": list(request.data.domains),
        "teacher": request.teacher.folder,
        "teacher_sees_students_normalization": request.student_normalization,
        "student": request.student.folder,
        "seeds": list(request.seeds),
        "rows": rows,
        "average": _over_seeds([fmean(accuracies) for accuracies in by_seed]) if by_seed else None,
        "teacher_passes": _passes(request, runs) if runs else None,
        "failed": [failure.__dict__ for failure in failures],
    }


def _run_json(done: DomainRun) -> dict[str, Json]:
    stages = [{"steps": origin["steps"], "swad": origin.get("swad")} for origin in done.origins]
    return {"seed": done.run.seed, "accuracy": done.accuracy, "bundle": done.bundle, "stages": stages}


def _over_seeds(accuracies: Sequence[float]) -> dict[str, Json]:
    return {"mean": fmean(accuracies), "std": stdev(accuracies) if len(accuracies) > 1 else None}


def _passes(request: DomainRequest, runs: Sequence[DomainRun]) -> dict[str, Json]:
    """What the teacher did once, and what it would have done in the loop of each training: an image in each sample of each step."""
    cache = Ledger(request.targets, "cache")
    images = sum(receipt.rows - len(receipt.invalid_rows) for receipt in cache.receipts())
    seconds = cache.timings().get("forward", 0.0)
    trainings = [origin for done in runs for origin in done.origins]
    in_loop = sum(int(origin["steps"]) * int(origin["settings"]["batch_size"]) for origin in trainings)
    times = [
        time.seconds
        for done in runs
        for stage in (1, 2)
        if (time := training_time(request.bundle(done.run, stage), "distill")) is not None
    ]
    seen = images * request.views
    return {
        "trainings": len(trainings),
        "passes_saved": len(trainings) - 1,
        "images": images,
        "views": request.views,
        "teacher_images": seen,
        "teacher_images_in_the_loop": in_loop,
        "teacher_seconds": seconds,
        "predicted_teacher_seconds_in_the_loop": seconds * in_loop / seen,
        "student_seconds": times,
    }
