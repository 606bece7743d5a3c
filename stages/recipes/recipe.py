"""Owns the seam between the trainer and the methods: what a recipe says of itself, and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ..students.family import Backbone
from ..students.student import PROJECTORS, Head, Student
from .schedule import SCHEDULES

_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": SCHEDULES,
    "projector": PROJECTORS,
    "embedding_loss": ("none", "cosine", "mse"),
}
#: Options of every recipe, and the value that means: none of that.
_OFF = {"accumulate": 1, "clip_norm": 0, "ema": 0, "patience": 0}
_MINIMUM = {
    "epochs": 1,
    "batch_size": 1,
    "warmup_epochs": 0,
    "weight_decay": 0,
    "prompt_length": 0,
    "prompt_depth": 1,
    "accumulate": 1,
    "clip_norm": 0,
    "ema": 0,
    "patience": 0,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of a method; its recipe holds the defaults. None: the recipe has no such thing.

    Attributes:
        epochs: passes over the corpus; epoch e reads view e mod K.
        batch_size: samples in a step; a last, shorter batch is left out.
        optimizer: `sgd` (momentum 0.9) or `adamw`.
        lr: highest learning rate.
        weight_decay: see the recipe for what it acts on.
        schedule: how the learning rate moves, see `schedule.learning_rate`.
        warmup_epochs: at its beginning.
        temperature: T of the softmaxes.
        loss_weight: factor of the divergence of the logits.
        projector: see `students.student.Head`.
        prompt_length, prompt_depth: tokens a layer, and layers, of deep visual prompts.
        embedding_loss: `none`, `cosine` or `mse`: a term that draws embeddings to the teacher's.
        embedding_weight: its factor.
        accumulate: equal parts of a batch that go through the student one after another; their gradients add up.
        clip_norm: largest norm of all gradients together; 0 for none.
        ema: decay of a moving average of the weights, which the bundle then holds; 0 for none.
        patience: epochs without a better validation accuracy after which training stops; 0 for never.
    """

    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    warmup_epochs: int
    temperature: float
    loss_weight: float
    projector: str
    prompt_length: int | None = None
    prompt_depth: int | None = None
    embedding_loss: str | None = None
    embedding_weight: float | None = None
    accumulate: int = 1
    clip_norm: float = 0.0
    ema: float = 0.0
    patience: int = 0

    def to_json(self) -> dict[str, Json]:
        """Those that the recipe has, without options that are off."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value is not None and value != _OFF.get(name)
        }

    def override(self, recipe: str, options: Mapping[str, Any]) -> Settings:
        """A copy with the options that are not None.

        Raises:
            InputError: an option that means nothing to this recipe, or an impossible number.
        """
        given = {name: value for name, value in options.items() if value is not None}
        for name in given:
            if getattr(self, name) is None:
                option = f"--{name.replace('_', '-')}"
                raise InputError(
                    f"an option that recipe {recipe} does not have", where=option, hint="leave it out"
                )
        settings = replace(self, **given)
        settings._check()
        return settings

    def _check(self) -> None:
        def refuse(name: str, expected: str) -> InputError:
            option = f"--{name.replace('_', '-')}"
            return InputError(
                "impossible setting", where=option, expected=expected, found=getattr(self, name)
            )

        for name, value in asdict(self).items():
            if value is None:
                continue
            if name in _CHOICES and value not in _CHOICES[name]:
                raise refuse(name, ", ".join(_CHOICES[name]))
            if name in _MINIMUM and value < _MINIMUM[name]:
                raise refuse(name, f"at least {_MINIMUM[name]}")
            if name in ("lr", "temperature") and not value > 0:
                raise refuse(name, "more than 0")
        if self.ema >= 1:
            raise refuse("ema", "less than 1")
        if self.batch_size % self.accumulate:
            raise refuse("batch_size", f"a multiple of {self.accumulate}, the parts of --accumulate")
        if self.warmup_epochs > self.epochs:
            raise refuse("warmup_epochs", f"at most {self.epochs}, the epochs")


@dataclass(frozen=True, kw_only=True)
class Said:
    """What student and teacher said of one batch, all fp32.

    Attributes:
        student_embedding_ND, student_logits_NC: with gradients.
        teacher_logits_NC: from the store, or formed from its embeddings and class vectors.
        teacher_embedding_ND: where the recipe asked for it.
    """

    student_embedding_ND: Tensor
    student_logits_NC: Tensor
    teacher_logits_NC: Tensor
    teacher_embedding_ND: Tensor | None


class Recipe(Protocol):
    """A distillation method."""

    @property
    def name(self) -> str:
        """What `--recipe` takes."""

    @property
    def defaults(self) -> Settings:
        """As published, or as is usual."""

    @property
    def frozen_backbone(self) -> bool:
        """Whether the backbone's own weights stay as they are; such a recipe wants them to be named."""

    def needs_embedding(self, settings: Settings) -> bool:
        """Whether the loss looks at the teacher's embedding."""

    def head(self, settings: Settings, backbone: Backbone, vectors: ClassVectors) -> Head:
        """The student's shape beyond its backbone.

        Raises:
            InputError: this backbone, or this teacher, cannot be used.
        """

    def logit_scale(self, backbone: Backbone, vectors: ClassVectors) -> float:
        """The factor from the student's embeddings to its logits."""

    def parameter_groups(self, student: Student, settings: Settings) -> list[dict[str, Any]]:
        """What trains, as torch optimizers take it: `params` and `weight_decay` of each group."""

    def loss(self, said: Said, settings: Settings) -> Tensor:
        """The loss of one batch, a scalar."""
