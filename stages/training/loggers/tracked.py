"""Owns what a tracking program is told of a run, and which of its runs this one is: kept beside the checkpoint, for the next resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ....pipeline.storage import Location
from ....storage_schemas.fingerprint import Json, canonical_json


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its program shows it.

    Attributes:
        project: Weights & Biases' project, MLflow's experiment.
        name: of the student.
        group: of students that were trained together; '' for one alone.
        about: settings of the training, by name.
    """

    project: str
    name: str
    group: str
    about: Mapping[str, Json]


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Which programs show a training run; none by default. It decides no byte of the student.

    Attributes:
        wandb: project, or None.
        mlflow: experiment, or None.
        name, group, about: as in `Run`.
    """

    wandb: str | None = None
    mlflow: str | None = None
    name: str = ""
    group: str = ""
    about: Mapping[str, Json] = field(default_factory=dict)

    def run(self, project: str) -> Run:
        """The run of one program."""
        return Run(project=project, name=self.name, group=self.group, about=self.about)


def kept_run(folder: Location, program: str, begin: Callable[[], Mapping[str, str]]) -> Mapping[str, str]:
    """Which run of a program this is: the one that was begun before, or what `begin` gives now, which is kept.

    It lies in PROGRAM.json: where the run is, and its id; no credentials. Each program has a file, since each works in its own thread.
    """
    place = folder / f"{program}.json"
    try:
        kept = json.loads(place.read_bytes())
    except (FileNotFoundError, ValueError):
        kept = None
    if isinstance(kept, dict) and isinstance(kept.get("id"), str):
        return kept
    begun = dict(begin())
    place.write_bytes(canonical_json(begun) + b"\n")
    return begun
