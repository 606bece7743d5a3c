"""Owns the settings that name a student's model. Imports no library, since options are made of them."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting
from .settings import PreprocessSettings, rehash_setting


@dataclass(frozen=True, kw_only=True)
class StudentConfig(PreprocessSettings):
    """Small and picklable.

    Attributes:
        pretrained: None for what the name implies.
        rehash: whether what is remembered of its weights is computed anew; see `known_weights`.
    """

    model: str = setting(
        option="",
        help="open_clip model (ViT-B-16, hf-hub:…, local-dir:…), timm:NAME, or decoder:NAME, which reads maps.",
    )
    pretrained: str | None = setting(
        None,
        help="Pretrained tag, path to weights, the bundle of a finished student, `random`, or for timm `default`. Without it, kd "
        "starts from seeded random weights; promptkd needs it.",
    )
    rehash: bool = rehash_setting()
