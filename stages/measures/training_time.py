"""Owns the steps and seconds of a training, by its log: interrupted or not, each step counts once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.bundle import RUN
from ...storage_schemas.json_file import Positive, read_json


@dataclass(frozen=True, kw_only=True)
class TrainingTime:
    """What steps took; validation and writing come on top.

    Attributes:
        seconds: all steps together, waiting for data among it.
        waited: what of that was waiting.
        steps, batch_size: steps, and samples in each.
    """

    seconds: float
    waited: float
    steps: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class _Figures:
    """The fields that are read of a line in `log.jsonl`."""

    step: Positive
    samples_per_second: Annotated[float, msgspec.Meta(gt=0)]
    wait_share: float


def training_time(folder: Location, stage: str) -> TrainingTime | None:
    """What `stage` (`distill`, `pretrain`) took in its folder; None where it has no log or no plan.

    The ledger's timings are those of the last attempt alone.

    Raises:
        DamagedError: a line of the log cannot be read.
    """
    plan, log = Ledger(folder, stage).plan(), folder / RUN / "log.jsonl"
    if plan is None or not log.exists():
        return None
    batch_size = int(plan.fingerprint.fields["settings"]["batch_size"])
    seconds, waited, done = 0.0, 0.0, 0
    for line in log.read_bytes().splitlines():
        figures = read_json(
            line,
            _Figures,
            what="not a line of a training log",
            code="training-log-malformed",
            where=log,
            hint="restore the log from a copy",
        )
        took = (figures.step - done) * batch_size / figures.samples_per_second
        seconds, waited, done = seconds + took, waited + took * figures.wait_share, figures.step
    return TrainingTime(seconds=seconds, waited=waited, steps=done, batch_size=batch_size)
