"""Owns what teacher and students cost, and from how many students on one pass of the teacher costs less.

Online, as the authors' code has it, the teacher's image tower sees every image of every step, and its text tower is run
in every step. Here the image tower sees each view once, and the text tower is run once. What online training would
have cost is not run but predicted, from the seconds that were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.fingerprint import Json
from ..measures.training_time import training_time
from .folders import SOURCE, DatasetFolders
from .request import Request
from .settings import CROSS


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of one data set: of the time that a device is in use, whether one or several are used at a time.

    Attributes:
        device: of the teacher: `cuda` or `cpu`.
        pretrain: learning the prompts; None where they were there before, or were learned for several data sets.
        text: one run of the text tower over all classes.
        images: the image tower over all views.
        samples, views: usable images, and views of each.
        students: training, for each run that is done.
        student_device: of the students.
        steps, epochs: of one run.
    """

    device: str
    pretrain: float | None
    text: float
    images: float
    samples: int
    views: int
    students: tuple[float, ...]
    student_device: str
    steps: int
    epochs: int

    @property
    def once(self) -> float:
        """The teacher's seconds here, for any number of students: K N t + x."""
        return self.images + self.text

    @property
    def online(self) -> float:
        """The teacher's seconds in one run with the teacher in the loop: E N t + steps x. Predicted."""
        return self.epochs * self.images / self.views + self.steps * self.text

    @property
    def break_even(self) -> float:
        """Runs of a student from which on one pass of the teacher costs no more."""
        return self.once / self.online

    @property
    def speed_up(self) -> float:
        """How many times as long the runs that were done would have taken with the teacher in the loop. Predicted."""
        runs, student = len(self.students), fmean(self.students)
        return runs * (self.online + student) / (self.once + runs * student)

    def to_json(self) -> Json:
        return {
            "teacher_device": self.device,
            "student_device": self.student_device,
            "pretrain_seconds": self.pretrain,
            "text_seconds": self.text,
            "image_seconds": self.images,
            "samples": self.samples,
            "views": self.views,
            "student_seconds": list(self.students),
            "steps": self.steps,
            "epochs": self.epochs,
            "teacher_once_seconds": self.once,
            "predicted_teacher_online_seconds": self.online,
            "break_even_students": self.break_even,
            "predicted_speed_up": self.speed_up,
        }


def costs_of(request: Request, dataset: str, bundles: Sequence[Location]) -> Costs | None:
    """What the finished stages of a data set took, and the training of these students; None where it is not recorded."""
    targets = DatasetFolders(root=request.out, dataset=dataset).targets
    times = [time for bundle in bundles if (time := training_time(bundle, "distill")) is not None]
    cache = Ledger(targets, "cache")
    cached = cache.plan()
    if not times or cached is None:
        return None
    trained = Ledger(bundles[0], "distill").plan()
    assert trained is not None  # it has a training time
    samples = sum(receipt.rows - len(receipt.invalid_rows) for receipt in cache.receipts())
    return Costs(
        device=_device(cached.fingerprint.fields),
        pretrain=None if request.protocol == CROSS else pretrain_seconds(request, dataset),
        text=Ledger(targets, "vectors").timings().get("forward", 0.0),
        images=cache.timings().get("forward", 0.0),
        samples=samples,
        views=int(cached.fingerprint.fields["views"]["count"]),
        students=tuple(time.seconds for time in times),
        student_device=_device(trained.fingerprint.fields),
        steps=times[0].steps,
        epochs=int(trained.fingerprint.fields["settings"]["epochs"]),
    )


def pretrain_seconds(request: Request, dataset: str) -> float | None:
    """Seconds of learning the prompts; None where they were there before. In the cross-dataset protocol, for all."""
    if request.prompts is not None:
        return None
    folder = DatasetFolders(root=request.out, dataset=SOURCE if request.protocol == CROSS else dataset).prompts
    time = training_time(folder, "pretrain")
    if time is None:
        return None
    return time.seconds + Ledger(folder, "pretrain").timings().get("text", 0.0)


def _device(fields: Json) -> str:
    return str(fields["compute"]["device"])
