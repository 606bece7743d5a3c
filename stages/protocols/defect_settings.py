"""Owns the settings of `teachonce benchmark reverse-distillation`. Imports no library, since options are made of it."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import LARGEST_SEED, setting
from ..corpora.spelling import DEFECT_PREFIXES
from .settings import MORE, STUDENT_GROUP, TEACHER_GROUP

#: Data sets, by the spelling of their layout.
DATASETS = tuple(prefix.removesuffix(":") for prefix in DEFECT_PREFIXES)


@dataclass(frozen=True, kw_only=True)
class DefectBenchmarkSettings:
    """What a user chooses; defaults as in Deng and Li, CVPR 2022, arXiv 2201.10703."""

    data: str = setting(unit="FOLDER", help="Folder of the data set: of MVTec AD's categories, for example.")
    dataset: str = setting("mvtec", choices=DATASETS, help="Its layout.")
    parts: str | None = setting(
        None,
        unit="NAMES",
        default_text="all categories of MVTec AD; the fabrics of the others together",
        help="Categories or fabrics, with commas between them; each has a student of its own.",
    )
    seeds: tuple[int, ...] = setting(
        (111,), least=0, most=LARGEST_SEED, unit="SEEDS", help="Seeds of the students, with commas between them."
    )
    epochs: int = setting(200, least=1, help="Passes of a student over the maps.")
    teacher: str = setting("timm:wide_resnet50_2", group=TEACHER_GROUP, help="Model whose maps are learned.")
    teacher_pretrained: str | None = setting(
        None, default_text="the name's own", group=TEACHER_GROUP, help="Its weights: tag or path."
    )
    levels: str = setting(
        "features.layer1,features.layer2,features.layer3",
        unit="NAMES",
        group=TEACHER_GROUP,
        help="Its maps, with commas between them.",
    )
    size: int = setting(
        256, least=1, unit="PIXELS", group=TEACHER_GROUP, help="Side of its images, to which they are resized whole."
    )
    encoding: str = setting(
        "fp16",
        unit="NAME",
        group=TEACHER_GROUP,
        help="How maps are stored; pca:0.15 takes about a quarter of fp16's bytes.",
    )
    student: str = setting("decoder:wide_resnet50_2", group=STUDENT_GROUP, help="The decoder.")
    cache_options: str | None = setting(None, group=MORE, help="For every `teachonce cache`.")
    distill_options: str | None = setting(
        None, group=MORE, help='For every `teachonce distill`, as in "--batch-size 8".'
    )
