"""Owns the settings of `teachonce anomalies`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting
from ..models.settings import COMPUTING


@dataclass(frozen=True, kw_only=True)
class AnomalySettings:
    """What is known of the images, and what is made of their maps."""

    masks: str | None = setting(
        None,
        unit="PATH",
        help="Where defects are: a folder with DEFECT/NAME_mask.png for DEFECT/NAME.png, or mvtec:CATEGORY/test=DATA, "
        "aitex:FABRIC/test=DATA.",
    )
    pictures: int = setting(
        32, least=0, unit="IMAGES", help="Images with the highest scores that are drawn with their maps; 0 for none."
    )
    batch_size: int = setting(16, least=1, unit="IMAGES", group=COMPUTING, help="Images in a forward pass.")
