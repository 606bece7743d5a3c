"""Owns the settings of `teachonce plan`, beside those of the commands that it plans."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting, with_default
from ..models.teacher_config import TeacherConfig
from .classes import CLASS_LIST

WITHOUT = "Without a corpus, or a teacher"
CLASSES = "Class vectors"
TIME = "Time"
TRAINING = "Students"
PRICES = "Prices"


@dataclass(frozen=True, kw_only=True)
class OptionalTeacher(TeacherConfig):
    """A teacher, or none."""

    model: str | None = with_default(TeacherConfig, "model", None)  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What is planned for, and what is stated where it is not measured here."""

    images: int | None = setting(None, least=1, group=WITHOUT, help="Number of images.")
    mean_kb: float | None = setting(
        None, above=0, unit="KB", group=WITHOUT, help="Size of an image file in the mean, in units of 1,000 bytes."
    )
    channels: int | None = setting(None, least=1, group=WITHOUT, help="Channels of the teacher's embeddings.")
    classes: str | None = setting(
        None,
        group=CLASSES,
        default_text="no class vectors",
        help=f"Plan for class vectors: a number of classes; `own` for the teacher's own; or as in `vectors`: {CLASS_LIST}.",
    )
    templates: str | None = setting(None, group=CLASSES, help="Prompt templates, as in `vectors`.")
    vectors: str | None = setting(
        None, unit="STORE", group=CLASSES, help="Plan for the class vectors of this store instead."
    )
    seconds: float = setting(10.0, above=0, group=TIME, help="Time the teacher here for so many seconds.")
    rate: float | None = setting(
        None,
        above=0,
        unit="VIEWS/S",
        group=TIME,
        default_text="measured here",
        help="Views a second of one worker, where the work is done.",
    )
    deadline: float | None = setting(
        None, above=0, unit="HOURS", group=TIME, help="Tell how many workers are done in so many hours."
    )
    epochs: int | None = setting(None, least=1, group=TRAINING, help="Epochs of a student.")
    students: int = setting(1, least=1, group=TRAINING, help="Students to train: of all seeds and settings.")
    student_rate: float | None = setting(
        None,
        above=0,
        unit="IMAGES/S",
        group=TRAINING,
        help="Images a second that a student's steps take, without waiting for data.",
    )
    student_run: str | None = setting(
        None, unit="FOLDER", group=TRAINING, help="Take that rate from the log of this run of `distill`."
    )
    student: str | None = setting(
        None, unit="MODEL", group=TRAINING, help="Tell the size of a bundle with this model, as in `distill --student`."
    )
    recipe: str = setting(
        "kd", unit="RECIPE", group=TRAINING, help="Recipe of that student: what it adds to the model."
    )
    price_gpu_hour: float | None = setting(
        None, least=0, unit="PRICE", group=PRICES, help="Of an hour of what one worker, or one student, runs on."
    )
    price_gb_month: float | None = setting(
        None, least=0, unit="PRICE", group=PRICES, help="Of keeping 1 GB (1,000,000,000 bytes) for a month."
    )
    price_requests: float | None = setting(
        None, least=0, unit="PRICE", group=PRICES, help="Of 1,000 requests to the place where shards and store lie."
    )
