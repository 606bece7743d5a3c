"""Owns the settings of the recipe `s3a`: as published."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...pipeline.settings import setting, with_default
from ...storage_schemas.errors import InputError
from .kd_settings import KdSettings
from .settings import TRAINING, TrainSettings

#: How timm describes its RandAugment, as far as this program passes it on.
_AUGMENT = re.compile(r"rand(-(m\d+(\.\d+)?|mstd(\d+(\.\d+)?|inf)|mmax\d+|n\d+|p[01]?\.?\d+|inc[01]))*")


@dataclass(frozen=True, kw_only=True)
class S3aSettings(TrainSettings):
    """Zhang et al., AAAI 2024, arXiv 2308.12960. The authors' learning rates are 2e-5 and 1e-6 times batch size / 256."""

    epochs: int = with_default(TrainSettings, "epochs", 30)
    batch_size: int = with_default(TrainSettings, "batch_size", 128)
    optimizer: str = with_default(TrainSettings, "optimizer", "adamw")
    lr: float = with_default(TrainSettings, "lr", 1e-5)
    min_lr: float = with_default(TrainSettings, "min_lr", 5e-7)
    weight_decay: float = with_default(TrainSettings, "weight_decay", 0.05)
    schedule: str = with_default(TrainSettings, "schedule", "cosine")
    warmup_epochs: int = with_default(TrainSettings, "warmup_epochs", 0)
    ema: float = with_default(TrainSettings, "ema", 0.9998, least=None, above=0, off=None)
    ema_start: float = with_default(TrainSettings, "ema_start", 0.999)
    ema_steps: int = with_default(TrainSettings, "ema_steps", 2000)
    layer_decay: float = with_default(TrainSettings, "layer_decay", 0.65)
    projector: str = with_default(KdSettings, "projector", "none")
    confidence: float = setting(
        0.5,
        least=0,
        below=1,
        group=TRAINING,
        help="Learn the moving average's own class of images where its probability is above this. Nothing stored has these pseudo labels: "
        "the average changes in every step, so they are computed in each.",
    )
    cluster_weight: float = setting(
        0.25, least=0, group=TRAINING, help="Factor of the cross entropy to the clusters' names of --labels."
    )
    strong_scale: tuple[float, float] = setting(
        (0.3, 1.0), above=0, most=1, unit="LEAST,MOST", group=TRAINING, help="Share of the image that the student sees."
    )
    strong_augment: str = setting(
        "rand-m9-mstd0.5-inc1",
        group=TRAINING,
        help="timm's RandAugment for what the student sees, by timm's description; '' for none.",
    )

    def check(self) -> None:
        super().check()
        if self.hold_out:
            raise InputError(
                "s3a has no loss to validate by: its pseudo labels are those of the step",
                code="options-exclude-each-other",
                where="--recipe s3a --hold-out",
                found=f"{self.hold_out:g}",
                hint="leave out --hold-out; --validation IMAGES measures accuracy on images with labels",
            )
        if self.strong_augment and not _AUGMENT.fullmatch(self.strong_augment):
            raise InputError(
                "not a description of timm's RandAugment",
                code="setting-impossible",
                where="--strong-augment",
                expected="such as rand-m9-mstd0.5-inc1",
                found=self.strong_augment,
            )
