"""Owns the settings of `teachonce vectors`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting, with_default
from ..models.settings import ComputeSettings
from .classes import BASE_CLASS_LIST, BASE_CLASSES, CLASS_LIST


@dataclass(frozen=True, kw_only=True)
class VectorsSettings:
    """Which class vectors, and what they are tried on.

    Attributes:
        classes: None for the teacher's own classes.
        templates: see `inputs.classes.read_templates`; refused where the teacher has learned its prompts.
        base_classes: None marks those that prompts were learned on, if any.
        check: see `teachers.class_check.check_accuracy`.
    """

    classes: str | None = setting(
        None, default_text="the teacher's own classes, where it has some", help=f"Class list: {CLASS_LIST}."
    )
    templates: str | None = setting(
        None,
        default_text="'a photo of a {}.'",
        help="Prompt templates: a file, `openai-imagenet` or `simple-imagenet`.",
    )
    base_classes: str | None = setting(
        None,
        unit=BASE_CLASSES,
        default_text="those that the teacher's prompts were learned on",
        help=f"Mark base classes, the others being novel: {BASE_CLASS_LIST}.",
    )
    check: str | None = setting(
        None,
        unit="IMAGES",
        help="Labelled images to try the vectors on: the vectors are refused if they are no better than guessing, or if learned prompts do half "
        "as well as none.",
    )


@dataclass(frozen=True, kw_only=True)
class VectorsComputeSettings(ComputeSettings):
    """In fp32: it is done once."""

    precision: str = with_default(
        ComputeSettings,
        "precision",
        "fp32",
        help="fp32, or autocast in bf16 (`amp_bf16`, or `bf16`). Logits are always formed in fp32.",
    )
