"""Owns the numbers of prompt tuning: PromptSRC's defaults for a ViT-L/14 teacher, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ..prompts.clip import PromptShape

_LEAST = {
    "epochs": 1, "batch_size": 1, "warmup_epochs": 0, "weight_decay": 0, "vision_length": 0, "vision_depth": 1,
    "text_length": 0, "text_depth": 1, "text_weight": 0, "image_weight": 0, "logits_weight": 0, "clip_norm": 0,
    "class_chunk": 0,
}  # fmt: skip
_ABOVE_ZERO = ("lr", "gpa_std")

#: The share of all epochs that lies before the mean of the averaging weights: 15 of 20.
_GPA_MEAN = 0.75


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """As published by Khattak et al., ICCV 2023, arXiv 2307.06948, with PromptKD's numbers for ViT-L/14.

    For a ViT-B/16 teacher both papers use lr 0.0025 and batches of 4.

    Attributes:
        epochs: passes over the shots; each sees a view of its own.
        batch_size: shots in a step; a last, shorter batch is left out.
        optimizer: `sgd` (momentum 0.9) or `adamw`.
        lr, schedule, warmup_epochs: see `training.schedule.learning_rate`.
        weight_decay: on all prompts.
        clip_norm: largest norm of all gradients together; 0 for none.
        context: the words whose embeddings text prompts start from; texts are "{context} {class}.".
        vision_length, text_length: prompt tokens a layer, in each tower.
        vision_depth, text_depth: layers with prompts.
        text_weight, image_weight, logits_weight: factors of the three terms that hold the model to what it was.
        gpa_mean, gpa_std: of the Gaussian that weighs each epoch's prompts, in epochs counted from 1; mean None: 3/4
            of all epochs.
        class_chunk: classes whose activations are held at a time; 0: all.
    """

    epochs: int = 20
    batch_size: int = 8
    optimizer: str = "sgd"
    lr: float = 0.005
    schedule: str = "coop"
    warmup_epochs: int = 1
    weight_decay: float = 5e-4
    clip_norm: float = 0.0
    context: str = "a photo of a"
    vision_length: int = 4
    vision_depth: int = 9
    text_length: int = 4
    text_depth: int = 9
    text_weight: float = 25.0
    image_weight: float = 10.0
    logits_weight: float = 1.0
    gpa_mean: float | None = None
    gpa_std: float = 1.0
    class_chunk: int = 32

    def override(self, options: Mapping[str, Any]) -> PretrainSettings:
        """A copy with the options that are not None.

        Raises:
            InputError: an impossible number.
        """
        settings = replace(self, **{name: value for name, value in options.items() if value is not None})
        for name, value in asdict(settings).items():
            least = _LEAST.get(name)
            if least is not None and value < least:
                raise _impossible(name, f"at least {least}", value)
            if name in _ABOVE_ZERO and not value > 0:
                raise _impossible(name, "more than 0", value)
        if settings.warmup_epochs > settings.epochs:
            raise _impossible(
                "warmup_epochs", f"at most {settings.epochs}, the epochs", settings.warmup_epochs
            )
        if not settings.context.strip():
            raise _impossible("context", "some words", repr(settings.context))
        if settings.vision_length == settings.text_length == 0:
            raise _impossible("vision_length", "prompts in one tower at least", "none in either")
        return settings

    @property
    def mean(self) -> float:
        """Mean of the averaging weights, in epochs counted from 1."""
        return _GPA_MEAN * self.epochs if self.gpa_mean is None else self.gpa_mean

    def shape(self, vision_blocks: int, text_blocks: int) -> PromptShape:
        """The prompts, no deeper than the towers have blocks."""
        return PromptShape(
            vision_length=self.vision_length, vision_depth=min(self.vision_depth, vision_blocks),
            text_length=self.text_length, text_depth=min(self.text_depth, text_blocks),
        )  # fmt: skip

    def to_json(self) -> dict[str, Json]:
        """What decides the prompts. The chunk decides low bits only, but it does decide them."""
        return {**asdict(self), "gpa_mean": self.mean}


def _impossible(name: str, expected: str, found: object) -> InputError:
    return InputError(
        "impossible setting", where=f"--{name.replace('_', '-')}", expected=expected, found=found
    )
