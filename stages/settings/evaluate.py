"""Owns the settings of `teachonce evaluate` and `teachonce predict`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting, with_default
from ..models.settings import COMPUTING, ComputeSettings
from .classes import BASE_CLASS_LIST, BASE_CLASSES


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is measured beside the accuracy over all classes."""

    store: str | None = setting(
        None, unit="PATH", help="Also measure agreement with this target store's teacher, on the pictures that it saw."
    )
    generation: str | None = setting(
        None,
        unit="NAME",
        default_text="the current one",
        help="With --store: compare with this generation of a store that grew.",
    )
    base_classes: str | None = setting(
        None, unit=BASE_CLASSES, help=f"Also measure base and novel classes separately: {BASE_CLASS_LIST}."
    )
    name: str | None = setting(
        None, help="Corpus name that `shard` was given, to find images that are not in shards in the store."
    )
    accept_other_pixels: bool = setting(
        False, help="With --store: go on even if this machine renders views differently from the one that cached them."
    )
    batch_size: int = setting(64, least=1, unit="IMAGES", group=COMPUTING, help="Images in a forward pass.")


@dataclass(frozen=True, kw_only=True)
class InferenceSettings(ComputeSettings):
    """How a student computes when it is measured or used: in fp32, as it is published."""

    precision: str = with_default(
        ComputeSettings,
        "precision",
        "fp32",
        help="fp32, or autocast in bf16 (`amp_bf16`, or `bf16`). Logits are always formed in fp32.",
    )
