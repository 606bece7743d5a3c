"""Owns the settings of `teachonce benchmark vl2v`. Imports no library, since options are made of it."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import LARGEST_SEED, setting
from .settings import MORE, PRETRAINED, STUDENT_GROUP, TEACHER_GROUP

#: A data set that is none of the known ones.
ANY_FOLDER = "folder"
DATASETS = ("pacs", "officehome", "vlcs", "terraincognita", "domainnet", ANY_FOLDER)

#: The models where nothing else is named.
DOMAIN_TEACHER, DOMAIN_STUDENT = "ViT-B-16", "timm:resnet50"


@dataclass(frozen=True, kw_only=True)
class DomainBenchmarkSettings:
    """What a user chooses; `domain_request.DomainRequest` is made of it."""

    data: str = setting(unit="FOLDER", help="The data set's folder, or the one that it lies in: DOMAIN/CLASS/IMAGE.")
    dataset: str = setting(
        choices=DATASETS, help=f"Which data set it is; `{ANY_FOLDER}` for any other with images at DOMAIN/CLASS/IMAGE."
    )
    seeds: tuple[int, ...] = setting(
        (0, 1, 2),
        least=0,
        most=LARGEST_SEED,
        unit="SEEDS",
        help="Seeds with commas between them: of what is held out, the order, and the projection.",
    )
    domains: tuple[str, ...] = setting(
        (),
        option="domain",
        default_text="each",
        help="Leave this domain out and measure on it; may be given several times.",
    )
    epochs: int | None = setting(
        None, least=1, default_text="25; domainnet 15", help="Measurements of the validation loss in each training."
    )
    steps_per_epoch: int | None = setting(
        None, least=1, default_text="200; domainnet 1000", help="Steps from one measurement to the next."
    )
    views: int | None = setting(
        None, least=1, default_text="one for each epoch", help="Views of each image that the teacher sees."
    )
    teacher: str | None = setting(None, default_text=DOMAIN_TEACHER, group=TEACHER_GROUP, help="open_clip model.")
    teacher_pretrained: str | None = setting(
        None,
        default_text=f"{PRETRAINED}, where the name does not say",
        group=TEACHER_GROUP,
        help="Its weights: tag or path.",
    )
    student_normalization: bool = setting(
        False,
        group=TEACHER_GROUP,
        help="As the authors' code does: show the teacher images that are normalised with ImageNet's mean and deviation. Without it, "
        "with the teacher's own.",
    )
    student: str | None = setting(None, default_text=DOMAIN_STUDENT, group=STUDENT_GROUP, help="Student model.")
    student_pretrained: str | None = setting(
        None,
        default_text="its default, or openai",
        group=STUDENT_GROUP,
        help="Its weights: tag or path.",
    )
    cache_options: str | None = setting(None, group=MORE, help="For `teachonce cache`.")
    distill_options: str | None = setting(
        None, group=MORE, help='For every `teachonce distill`, as in "--per-domain 16 --lr 1e-5".'
    )
