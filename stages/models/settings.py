"""Owns the settings of how a model computes and how its images are made. Imports no library: options are made of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ...pipeline.settings import setting, with_default
from ..views.settings import CENTERED, FILTERS, LEAST_CROP

if TYPE_CHECKING:
    from .preprocess import Preprocess

#: Groups of `--help`.
COMPUTING, PREPROCESSING = "Computing", "Preprocessing, if not the model's own"

#: What stores record of `amp_bf16` and of `bf16`. At first there was autocast alone, by the name of `bf16`: what was recorded
#: then keeps its meaning.
AUTOCAST, WEIGHTS = "bf16", "bf16_weights"


def precision_name(recorded: str) -> str:
    """What `--precision` calls a precision that a store records."""
    return {AUTOCAST: "amp_bf16", WEIGHTS: "bf16"}.get(recorded, recorded)


@dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """How a model computes; `compute.resolve_compute` settles `auto`."""

    device: str = setting(
        "auto",
        choices=("auto", "cpu", "cuda"),
        group=COMPUTING,
        help="Where the model runs; auto: CUDA where there is one.",
    )
    precision: str = setting(
        "auto",
        choices=("auto", "bf16", "amp_bf16", "fp32"),
        group=COMPUTING,
        help="bf16: weights cast to bf16 once; amp_bf16: autocast, as `bf16` meant before; auto: bf16 where it is faster than fp32. Norms, "
        "softmax and logits are computed in fp32.",
    )
    threads: int | None = setting(
        None, least=1, default_text="cores, at most 4", group=COMPUTING, help="Torch threads of one worker."
    )
    decode_workers: int | None = setting(
        None,
        least=0,
        unit="PROCESSES",
        default_text="cores without those of --threads; with CUDA all",
        group=COMPUTING,
        help="Processes that decode images ahead; 0 for threads of the command itself. They decide no bytes.",
    )


@dataclass(frozen=True, kw_only=True)
class TrainingComputeSettings(ComputeSettings):
    """How a model is trained; `compute.training_compute` settles `auto`."""

    precision: str = with_default(
        ComputeSettings,
        "precision",
        "auto",
        help="Autocast in bf16 (`amp_bf16`, or `bf16`), or fp32; auto: autocast on CUDA, fp32 on the CPU. Logits and loss are always fp32.",
    )
    decode_workers: int | None = with_default(
        ComputeSettings,
        "decode_workers",
        None,
        default_text="cores without those of --threads, at least 2; with CUDA all",
    )


def rehash_setting() -> Any:
    """The field of settings that name a model: what is remembered of its weights file is not used."""
    return setting(
        False,
        no_prefix=True,
        group=COMPUTING,
        help="Hash and try the model's weights again, even if their file has not changed since the last time.",
    )


@dataclass(frozen=True, kw_only=True)
class PreprocessSettings:
    """What replaces parts of a model's own preprocessing; None keeps them. See `preprocess.Preprocess`."""

    size: int | None = setting(None, least=1, unit="PIXELS", group=PREPROCESSING, help="Side of the square input.")
    mean: tuple[float, float, float] | None = setting(
        None, unit="R,G,B", group=PREPROCESSING, help="Mean of each channel, on a scale of 0 to 1."
    )
    std: tuple[float, float, float] | None = setting(
        None,
        above=0,
        unit="R,G,B",
        group=PREPROCESSING,
        help="Standard deviation of each channel, on a scale of 0 to 1.",
    )
    interpolation: str | None = setting(
        None, choices=FILTERS, group=PREPROCESSING, help="Resampling filter at test time."
    )
    crop_pct: float | None = setting(
        None,
        least=LEAST_CROP,
        most=1,
        group=PREPROCESSING,
        help="Share of the resized image that the test-time centre crop keeps.",
    )
    crop_mode: str | None = setting(
        None,
        choices=CENTERED,
        group=PREPROCESSING,
        help="At test time: resize the shorter side, both sides, or the longer side and pad with the mean colour.",
    )

    def preprocess(self, own: Preprocess) -> Preprocess:
        """The model's own preprocessing with these overrides."""
        return own.override(**{field.name: getattr(self, field.name) for field in fields(PreprocessSettings)})
