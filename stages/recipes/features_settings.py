"""Owns the settings of the recipe `features`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting, with_default
from ..students.projectors import PROJECTORS
from .kd_settings import KdSettings
from .settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class FeaturesSettings(TrainSettings):
    """As is usual for training a whole student; see `Features` for what they mean."""

    batch_size: int = with_default(TrainSettings, "batch_size", 64)
    optimizer: str = with_default(TrainSettings, "optimizer", "adamw")
    lr: float = with_default(TrainSettings, "lr", 1e-3)
    weight_decay: float = with_default(TrainSettings, "weight_decay", 0.05)
    schedule: str = with_default(TrainSettings, "schedule", "cosine")
    projector: str = with_default(KdSettings, "projector", "linear", choices=PROJECTORS)
    feature_targets: str = setting(
        "",
        unit="NAMES",
        default_text="all that the store holds, but logits",
        help="Targets to learn, with commas between them: tokens, features.LAYER, embedding.",
    )
    student_layers: str = setting(
        "",
        unit="NAMES",
        default_text="for each target the deepest of the student's maps whose grid is nearest",
        help="The student's map for each target, in their order, with commas: tokens, features.LAYER.",
    )
    feature_loss: str = setting(
        "cosine",
        choices=("cosine", "mse", "smooth-l1"),
        help="Distance at each place: 1 - cosine over channels, squared, or smooth L1.",
    )
    standardize: bool = setting(
        False,
        off=False,
        help="Compare every target minus its mean and divided by its standard deviation, channel by channel over the store: targets of "
        "several teachers then weigh the same.",
    )
