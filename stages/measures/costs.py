"""Owns what teacher and students cost, and from how many students on one pass of the teacher costs less.

Online, as the authors' code has it, the teacher's image tower sees every image of every step, and its text tower is run
in every step. Here the image tower sees each view once, and the text tower is run once. What online training would
have cost is not run but predicted, from the seconds that were measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from ...storage_schemas.fingerprint import Json


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
