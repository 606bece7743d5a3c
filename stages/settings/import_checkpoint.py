"""Owns the settings of `teachonce import`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting
from ..published.layout import STUDENT, TEACHER
from .classes import BASE_CLASSES, CLASS_LIST

#: Words that the authors' text prompts start from.
CONTEXT = "a photo of a"


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What a checkpoint does not hold itself; each kind's in a group of its own. None: not given, or as `default_text` says."""

    teacher: str | None = setting(
        None, group=TEACHER, help="The open_clip model that it was trained with (ViT-L-14, hf-hub:…, local-dir:…)."
    )
    teacher_pretrained: str | None = setting(
        None, group=TEACHER, help="That model's weights: a pretrained tag (openai) or a path."
    )
    classes: str | None = setting(None, group=TEACHER, help=f"All classes, base and novel: {CLASS_LIST}.")
    base_classes: str | None = setting(
        None,
        unit=BASE_CLASSES,
        group=TEACHER,
        default_text="those whose texts are in the file; all where it has none",
        help="The classes that it was trained on.",
    )
    context: str | None = setting(
        None, default_text=CONTEXT, group=TEACHER, help="Words that its text prompts start from."
    )
    weights: str | None = setting(
        None,
        choices=("checkpoint", "backbone"),
        default_text="checkpoint",
        group=TEACHER,
        help="Whose frozen weights to use: the file's, which its authors ran, or the model's.",
    )
    student: str | None = setting(
        None, group=STUDENT, help="The open_clip model that the student was trained from (ViT-B-16, …)."
    )
    student_pretrained: str | None = setting(
        None, group=STUDENT, help="That model's weights: a pretrained tag (openai) or a path."
    )
    vectors: str | None = setting(None, unit="PATH", group=STUDENT, help="The store with its teacher's class vectors.")
