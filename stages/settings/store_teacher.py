"""Owns the settings that name a store's teacher again."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting
from ..models.settings import rehash_setting


@dataclass(frozen=True, kw_only=True)
class StoreTeacherSettings:
    """What of the teacher's name a store does not hold.

    Attributes:
        model: None for the one that the store names.
    """

    model: str | None = setting(
        None,
        default_text="as the store names it",
        help="The teacher, as `cache` was given it; needed where it is a folder (local-dir:…, teachonce:…).",
    )
    pretrained: str | None = setting(
        None,
        default_text="those that the name brings",
        help="Pretrained tag, or path to weights, as `cache` was given it.",
    )
    backbone: str | None = setting(None, help="For prompts: the model that they were learned for, if it has moved.")
    rehash: bool = rehash_setting()
