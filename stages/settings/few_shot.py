"""Owns the settings of `teachonce pretrain` that decide which images prompts are learned on."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import seed_setting, setting
from .classes import BASE_CLASS_LIST, BASE_CLASSES, CLASS_LIST


@dataclass(frozen=True, kw_only=True)
class FewShotSettings:
    """Which classes, and how many images of each.

    Attributes:
        classes: None takes the labels of the images (of a data set: its class list).
        base_classes: None learns on all classes.
        seed: of the draw of shots, their order, views and the prompts' start.
    """

    classes: str | None = setting(
        None,
        default_text="the data set's class list, or the labels of the images",
        help=f"All classes, base and novel: {CLASS_LIST}.",
    )
    base_classes: str | None = setting(
        None, unit=BASE_CLASSES, default_text="all", help=f"Learn on these classes only: {BASE_CLASS_LIST}."
    )
    shots: int = setting(16, least=1, unit="IMAGES", help="Images of each class to learn on.")
    seed: int = seed_setting(1, help="Seed of the draw of shots, their order and views, and the prompts.")
