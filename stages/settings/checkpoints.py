"""Owns the settings of checkpoints, for the stages that train."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting
from ..models.settings import COMPUTING


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """They decide no bytes of the result."""

    checkpoint_every: int | None = setting(
        None,
        least=1,
        unit="STEPS",
        group=COMPUTING,
        help="Steps between two checkpoints, besides the one after each epoch.",
    )
