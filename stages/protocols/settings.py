"""Owns the settings of `teachonce benchmark promptkd`. Imports no library, since options are made of it."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import LARGEST_SEED, setting, with_default
from ..models.settings import ComputeSettings
from ..settings.few_shot import FewShotSettings

BASE2NOVEL, CROSS = "base2novel", "cross-dataset"
PROTOCOLS = (BASE2NOVEL, CROSS)

TEACHER_GROUP, STUDENT_GROUP, MORE = "Teacher", "Students", "Options to append to the commands"

#: The paper's models.
TEACHER, STUDENT, PRETRAINED = "ViT-L-14", "ViT-B-16", "openai"


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """What a user chooses; `request.Request` is made of it."""

    data: str = setting(unit="FOLDER", help="Folder of the data sets, as CoOp's DATASETS.md lays them out.")
    protocol: str = setting(
        choices=PROTOCOLS,
        help="base2novel: prompts learned on each data set's base classes. cross-dataset: prompts learned on ImageNet teach on "
        "the others.",
    )
    datasets: str | None = setting(
        None,
        unit="NAMES",
        default_text="those of the paper that DATA holds",
        help="Data sets with commas between them.",
    )
    seeds: tuple[int, ...] = setting(
        (1, 2, 3), least=0, most=LARGEST_SEED, unit="SEEDS", help="Seeds of the students, with commas between them."
    )
    epochs: int = setting(20, least=1, help="Passes of a student over the images.")
    views: int | None = setting(
        None, least=1, default_text="one for each epoch", help="Views of each image that the teacher sees."
    )
    select_on_test: bool = setting(
        False,
        help="As the authors' code does: keep the epoch that is best ON THE TEST IMAGES. Optimistic: only for comparison with "
        "the paper. Without it, the validation split decides, by its base classes (cross-dataset: all classes), or the last "
        "epoch counts where there is none.",
    )
    teacher: str | None = setting(
        None,
        default_text=TEACHER,
        group=TEACHER_GROUP,
        help="open_clip model that gets prompts. With --prompts: the model that they go with, if it has moved.",
    )
    teacher_pretrained: str | None = setting(
        None,
        default_text=f"{PRETRAINED}, where the name does not say",
        group=TEACHER_GROUP,
        help="Its weights: tag or path.",
    )
    teacher_seed: int = with_default(
        FewShotSettings,
        "seed",
        FewShotSettings.seed,
        group=TEACHER_GROUP,
        help="Seed of the draw of shots, and of the prompts.",
    )
    shots: int = with_default(
        FewShotSettings,
        "shots",
        FewShotSettings.shots,
        group=TEACHER_GROUP,
        help="Images of each class to learn prompts on.",
    )
    prompts: str | None = setting(
        None,
        unit="FOLDER",
        group=TEACHER_GROUP,
        help="Use these prompts instead of learning some: FOLDER/NAME for each data set, or for cross-dataset one folder of "
        "prompts.",
    )
    students: tuple[str, ...] = setting(
        (),
        option="student",
        default_text=STUDENT,
        group=STUDENT_GROUP,
        help="Student model; may be given several times.",
    )
    students_pretrained: tuple[str, ...] = setting(
        (),
        option="student_pretrained",
        default_text=f"{PRETRAINED}, where the name does not say",
        group=STUDENT_GROUP,
        help="Its weights: once for all students, or once for each.",
    )
    pretrain_options: str | None = setting(None, group=MORE, help="For every `teachonce pretrain`.")
    cache_options: str | None = setting(None, group=MORE, help="For `teachonce cache` of images to train on.")
    distill_options: str | None = setting(
        None, group=MORE, help='For every `teachonce distill`, as in "--lr 0.01 --batch-size 32".'
    )


@dataclass(frozen=True, kw_only=True)
class BenchmarkComputeSettings(ComputeSettings):
    """How all the commands compute."""

    precision: str = with_default(
        ComputeSettings,
        "precision",
        "auto",
        help="Precision of pretrain, cache and distill. Class vectors are computed, and students measured, in fp32.",
    )
