"""Owns the settings of the recipe `kd`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import impossible, setting, with_default
from ..students.projectors import CLASSES, PROJECTORS
from .settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class KdSettings(TrainSettings):
    """As is usual for training a whole student."""

    batch_size: int = with_default(TrainSettings, "batch_size", 64)
    optimizer: str = with_default(TrainSettings, "optimizer", "adamw")
    lr: float = with_default(TrainSettings, "lr", 1e-3)
    weight_decay: float = with_default(TrainSettings, "weight_decay", 0.05)
    schedule: str = with_default(TrainSettings, "schedule", "cosine")
    temperature: float = setting(1.0, above=0, help="Temperature T of the softmaxes.")
    loss_weight: float = setting(1.0, least=0, help="Factor of the divergence.")
    projector: str = setting(
        "linear",
        choices=(*PROJECTORS, CLASSES),
        help="From the student's features to the teacher's width; `classes` (kd): a layer of the student's own from them to the "
        "classes, in place of the teacher's class vectors.",
    )
    embedding_loss: str = setting(
        "none",
        choices=("none", "cosine", "mse"),
        help="Also a loss on the distance to the teacher's embeddings, if these are cached.",
    )
    embedding_weight: float = setting(
        1.0, least=0, needs=("embedding_loss", ("cosine", "mse")), help="Factor of the embedding term."
    )
    label_weight: float = setting(
        0.0,
        least=0,
        off=0,
        help="Factor of a cross entropy to the corpus's own labels; images without one learn from the teacher alone.",
    )

    def check(self) -> None:
        super().check()
        if self.projector == CLASSES and self.embedding_loss != "none":
            raise impossible("embedding_loss", f"none, with --projector {CLASSES}", self.embedding_loss)
