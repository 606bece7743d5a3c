"""Owns the numbers of prompt tuning: PromptSRC's defaults for a ViT-L/14 teacher. Imports no library: options are made of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ...pipeline.settings import check, impossible, setting
from ..recipes.schedule import SCHEDULES

if TYPE_CHECKING:
    from ...storage_schemas.fingerprint import Json
    from ..prompts.clip import PromptShape

#: Groups of `--help`.
TRAINING, PROMPTS, LOSS = "Training", "Prompts", "Loss, and the average over epochs"

#: The share of all epochs that lies before the mean of the averaging weights: 15 of 20.
_GPA_MEAN = 0.75


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """As published by Khattak et al., ICCV 2023, arXiv 2307.06948, with PromptKD's numbers for ViT-L/14.

    For a ViT-B/16 teacher both papers use lr 0.0025 and batches of 4.

    Attributes:
        epochs: each sees a view of its own.
        batch_size: a last, shorter batch is left out.
        lr, schedule, warmup_epochs: see `recipes.schedule.learning_rate`.
        context: texts are "{context} {class}.".
        vision_depth, text_depth: no deeper than the towers.
        text_weight, image_weight, logits_weight: factors of the three terms that hold the model to what it was.
        gpa_mean: None: 3/4 of all epochs.
        class_chunk: decides low bits.
    """

    epochs: int = setting(20, least=1, help="Passes over the shots.")
    batch_size: int = setting(8, least=1, unit="IMAGES", help="Images per step; the papers' ViT-B/16 teacher: 4.")
    lr: float = setting(0.005, above=0, help="Highest learning rate; the papers' ViT-B/16 teacher: 0.0025.")
    optimizer: str = setting("sgd", choices=("sgd", "adamw"), group=TRAINING, help="SGD with momentum 0.9, or AdamW.")
    schedule: str = setting(
        "coop", choices=SCHEDULES, group=TRAINING, help="Learning rate: cosine by step, CoOp's by epoch, or constant."
    )
    warmup_epochs: int = setting(1, least=0, unit="EPOCHS", group=TRAINING, help="Epochs of warm-up.")
    weight_decay: float = setting(5e-4, least=0, group=TRAINING, help="Weight decay, on all prompts.")
    clip_norm: float = setting(
        0.0, least=0, group=TRAINING, help="Largest norm of all gradients together; 0: no limit."
    )
    class_chunk: int = setting(
        32,
        least=0,
        unit="CLASSES",
        group=TRAINING,
        help="Classes whose activations are held at a time, at the cost of computing them twice; 0: all.",
    )
    context: str = setting("a photo of a", group=PROMPTS, help="Words that text prompts start from.")
    vision_length: int = setting(4, least=0, unit="TOKENS", group=PROMPTS, help="Vision prompt tokens per layer.")
    text_length: int = setting(4, least=0, unit="TOKENS", group=PROMPTS, help="Text prompt tokens per layer.")
    vision_depth: int = setting(
        9, least=1, unit="LAYERS", group=PROMPTS, help="Layers with vision prompts, at most the tower's."
    )
    text_depth: int = setting(
        9, least=1, unit="LAYERS", group=PROMPTS, help="Layers with text prompts, at most the tower's."
    )
    text_weight: float = setting(25.0, least=0, group=LOSS, help="Factor of the distance to frozen text features.")
    image_weight: float = setting(10.0, least=0, group=LOSS, help="Factor of the distance to frozen image features.")
    logits_weight: float = setting(
        1.0, least=0, group=LOSS, help="Factor of the divergence from the frozen model's logits."
    )
    gpa_mean: float | None = setting(
        None,
        least=0,
        most=1e6,
        unit="EPOCHS",
        default_text="3/4 of all epochs",
        group=LOSS,
        help="Mean of the Gaussian that weighs the epochs' prompts, in epochs from 1.",
    )
    gpa_std: float = setting(
        1.0, least=0.001, most=1e6, unit="EPOCHS", group=LOSS, help="Standard deviation of that Gaussian."
    )

    def check(self) -> None:
        """Refuse values that cannot be, alone or together.

        Raises:
            InputError: naming the option.
        """
        check(self)
        if self.warmup_epochs > self.epochs:
            raise impossible("warmup_epochs", f"at most {self.epochs}, the epochs", self.warmup_epochs)
        if not self.context.strip():
            raise impossible("context", "some words", repr(self.context))
        if self.vision_length == self.text_length == 0:
            raise impossible("vision_length", "prompts in one tower at least", "none in either")

    @property
    def mean(self) -> float:
        """Mean of the averaging weights, in epochs counted from 1."""
        return _GPA_MEAN * self.epochs if self.gpa_mean is None else self.gpa_mean

    def shape(self, vision_blocks: int, text_blocks: int) -> PromptShape:
        """The prompts, no deeper than the towers have blocks."""
        from ..prompts.clip import PromptShape

        return PromptShape(
            vision_length=self.vision_length,
            vision_depth=min(self.vision_depth, vision_blocks),
            text_length=self.text_length,
            text_depth=min(self.text_depth, text_blocks),
        )

    def to_json(self) -> dict[str, Json]:
        """What decides the prompts. The chunk decides low bits only, but it does decide them."""
        return {**asdict(self), "gpa_mean": self.mean}
