"""Owns trials: students trained from K cached views or with the teacher in the loop, each measured once and kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import Cost, cost
from held_out import HeldOut
from numpy.typing import NDArray
from online import OnlineStage
from step_record import recorded
from task import Task
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.distill import plan_distill
from teachonce.stages.distilling.stage import DistillStage
from teachonce.stages.settings.distill import DistillSettings
from teachonce.storage_schemas.fingerprint import Fingerprint, Json

#: Steps whose mean loss is reported as the last one.
_LAST = 20


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training.

    Attributes:
        views: K cached views; None asks the teacher in every step, in as many views as there are epochs.
        seed: of the order and of new weights.
        encoding: of the store.
    """

    corpus: str
    recipe: str
    views: int | None
    seed: int
    encoding: str = "fp16"

    @property
    def name(self) -> str:
        how = "online" if self.views is None else f"k{self.views}"
        how += "" if self.encoding == "fp16" else f"-{self.encoding}"
        return f"{self.corpus}-{self.recipe}-{how}-seed{self.seed}"


class TrialBook:
    """Finished trials in a folder: one JSON line each in trials.jsonl, held-out logits in logits/NAME.npy.

    Raises:
        MismatchError: the folder holds trials with other settings; names the field.
    """

    def __init__(self, folder: Path, settings: dict[str, Json] | None) -> None:
        """`settings` of the trials that are to come; None only to read."""
        self._folder, self._lines, note = folder, folder / "trials.jsonl", folder / "settings.json"
        if settings is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if note.exists():
            Fingerprint(fields=settings).check(
                json.loads(note.read_bytes()),
                what="trials with other settings",
                code="output-other-settings",
                where=note,
                hint="use the options of the first run, or another --out",
                whose=("this command", "the folder"),
            )
        else:
            note.write_text(json.dumps(settings, indent=1) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """Each finished trial, with its results."""
        text = self._lines.read_text() if self._lines.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def logits(self, name: str) -> NDArray[np.float32]:
        """Held-out logits (image, class) of a trial's student."""
        found: NDArray[np.float32] = np.load(self._folder / "logits" / f"{name}.npy")
        return found

    def __contains__(self, trial: Trial) -> bool:
        return any(line["name"] == trial.name for line in self.lines())

    def add(self, trial: Trial, facts: dict[str, Json], logits_NC: NDArray[np.float32]) -> None:
        """Keep a trial; its line is written last, and at once."""
        (self._folder / "logits").mkdir(exist_ok=True)
        np.save(self._folder / "logits" / f"{trial.name}.npy", logits_NC)
        lines = [*self.lines(), {"name": trial.name, **asdict(trial), **facts}]
        Location.of(self._lines).write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode())


def trials(corpus: str, recipes: Sequence[str], views: Sequence[int], seed: int, *, fp32: bool) -> Iterator[Trial]:
    """All of one seed: the teacher in the loop first; with `fp32`, the most views with targets in fp32 too."""
    for recipe in recipes:
        for count in (None, *views):
            yield Trial(corpus=corpus, recipe=recipe, views=count, seed=seed)
        if fp32:
            yield Trial(corpus=corpus, recipe=recipe, views=max(views), seed=seed, encoding="fp32")


def run_trial(
    trial: Trial, task: Task, held_out: HeldOut, *, epochs: int, scratch: Path
) -> tuple[dict[str, Json], NDArray[np.float32]]:
    """Train a student and measure it: the facts, and its held-out logits."""
    bundle = scratch / trial.name
    shutil.rmtree(bundle, ignore_errors=True)
    stage = plan(
        task,
        trial.recipe,
        epochs=epochs,
        views=trial.views or epochs,
        seed=trial.seed,
        out=bundle,
        encoding=trial.encoding,
    )
    if trial.views is None:
        stage = OnlineStage.like(stage, out=stage.out, teacher=task.teacher, compute=task.teacher_compute)
    with recorded() as record:
        took: Cost = cost(lambda: run_stage(stage, stage.out, SerialExecutor(), progress=False))
    logits_NC = held_out.logits(bundle)
    shutil.rmtree(bundle)
    last = record.losses[-_LAST:]
    facts: dict[str, Json] = {
        **held_out.measured(logits_NC),
        "loss": sum(last) / len(last),
        "steps": len(record.losses),
        "seconds": took.wall,
        "cpu_seconds": took.cpu,
        "fingerprint": stage.fingerprint.digest,
    }
    return facts, logits_NC


def plan(
    task: Task, recipe: str, *, epochs: int, views: int, seed: int, out: Path, encoding: str = "fp16"
) -> DistillStage:
    """The training of a task's student from its store."""
    training = task.trainings[recipe]
    return plan_distill(
        str(task.shards),
        str(task.store(encoding)),
        training.student,
        out=str(Location.of(out)),
        recipe=recipe,
        options={**training.options, "epochs": epochs},
        settings=DistillSettings(views=views, seed=seed),
        compute=task.student_compute,
        show_progress=False,
    )
