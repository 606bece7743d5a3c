"""Owns the seam between the trainer and the methods: what a recipe declares, and the inputs of its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from ...storage_schemas.class_vectors import ClassVectors
    from ...storage_schemas.store_description import TargetSpec
    from ..models.preprocess import Preprocess
    from ..students.base import BaseStudent
    from ..students.family import Backbone
    from ..students.head import Head
    from ..views.anew import ViewAnew
    from .settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """Outputs of student and teacher for one batch, all fp32, by the names of targets.

    Attributes:
        student: with gradients. `embedding` (N, D) where it reads images; `logits` (N, C) where there are class vectors; and for
            each of the head's levels what its projector, or the decoder, gives, under the name of the target that it is compared
            with and in its shape.
        teacher: the targets that the recipe needs, from the store; `logits` may be formed from embeddings. `label` and `domain`
            are int64 (N,), -1 for none.
        class_vectors_CD: the class vectors, fp32; None where there are none.
        average: outputs of the moving average of the student's weights, without gradients, for the view that `average_sees` names;
            as `student`, without levels. Empty where it names none.
        text_scale: the teacher's factor from cosines of image and text to logits; None where no captions are read.
        weights_N: what `average_weights` gave, divided by its mean over the whole batch; None where it gave nothing.
    """

    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    class_vectors_CD: Tensor | None = None
    average: Mapping[str, Tensor] = field(default_factory=dict)
    weights_N: Tensor | None = None
    text_scale: float | None = None


class Recipe(Protocol):
    """A distillation method. Its settings are a subclass of `TrainSettings`; their fields become options of `distill`.

    `BaseRecipe` has defaults for what few recipes change.
    """

    @property
    def name(self) -> str:
        """What `--recipe` takes."""

    @property
    def defaults(self) -> Any:
        """Its defaults, as published or as is usual: an object of its own settings class."""

    @property
    def frozen_backbone(self) -> bool:
        """Whether the backbone's own weights stay as they are; such a recipe needs them to be named."""

    @property
    def reads_images(self) -> bool:
        """Whether its students read images. Those of others read the targets themselves, and no image is opened for them."""

    @property
    def compares_samples(self) -> bool:
        """Whether its loss compares samples of a batch with each other: then parts of a batch do not give what the whole gives."""

    def keeps_backbone(self, settings: Any) -> bool:
        """Whether these settings leave the backbone's own weights as they are."""

    def check_start(self, settings: Any, origin: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        """Refuse a student to start from.

        Args:
            settings: its own.
            origin: what a finished student's bundle records, where it starts from one; else None.
            parts: beside the backbone, those that were taken from it.

        Raises:
            InputError: these settings need another start.
        """

    def needs_all_labels(self, settings: Any) -> bool:
        """Whether every sample must have a label that is the name of a class, where `label` is among its targets."""

    def standardized(self, settings: Any, names: Sequence[str]) -> tuple[str, ...]:
        """Which of its targets are compared standardised: minus the mean and divided by the standard deviation of each channel, in
        the store, on both sides. What the student gives at inference stays in the teacher's own scale."""

    def targets(self, settings: Any, stored: Sequence[TargetSpec]) -> tuple[str, ...]:
        """Names of the targets that the loss needs.

        `logits` needs class vectors, and is there wherever logits or embeddings are stored. `label` (the class id of the sample's
        label, int64) needs class vectors and a corpus with labels, `domain` (a number, int64) one whose images lie at
        DOMAIN/CLASS/IMAGE, `cluster` (the place of a name among the class vectors, int64) `--labels`, `caption` (its captions' embeddings, fp32 (caption,
        channel)) and `caption_count` (int64; 0: it has none) `--captions`; no store holds these. Other names must be stored.

        Args:
            settings: its own.
            stored: what the store holds.

        Raises:
            InputError: the store holds nothing that this recipe can use.
        """

    def views_anew(self, settings: Any, preprocess: Preprocess) -> Mapping[str, ViewAnew]:
        """Views that are drawn anew in each epoch, by name: `image` is what the student gets, in place of the stored view.

        Only for losses without a stored target of what a view shows. Others come beside the targets, under their names.
        """

    def average_sees(self, settings: Any) -> str | None:
        """Which of these views the moving average of the student's weights looks at in each step; None: it looks at nothing."""

    def average_weights(self, average: Mapping[str, Tensor], settings: Any) -> Tensor | None:
        """What each sample counts in (a term of) the loss, fp32 (N,), by the moving average's outputs; None for no weights."""

    def head(
        self,
        settings: Any,
        backbone: Backbone,
        vectors: ClassVectors | None,
        targets: Mapping[str, TargetSpec],
    ) -> Head:
        """The student's shape beyond its backbone.

        Args:
            settings: its own.
            backbone: the student's.
            vectors: class vectors; None where there are none, or where the targets are not about classes.
            targets: those that it needs, by name, with axes and shapes.

        Raises:
            InputError: this backbone, or this teacher, cannot be used.
        """

    def logit_scale(self, backbone: Backbone, vectors: ClassVectors) -> float:
        """The factor from the student's embeddings to its logits. Called only where there are class vectors."""

    def parameter_groups(self, student: BaseStudent, settings: Any) -> list[dict[str, Any]]:
        """What trains, as torch optimizers take it: `params` and `weight_decay` of each group."""

    def loss(self, outputs: LossInputs, settings: Any) -> Tensor:
        """The loss of one batch, a scalar: a mean over its samples."""


class BaseRecipe:
    """What most recipes have in common."""

    frozen_backbone = False
    reads_images = True
    compares_samples = False

    def logit_scale(self, backbone: Backbone, vectors: ClassVectors) -> float:
        """The teacher's."""
        return vectors.logit_scale

    def keeps_backbone(self, settings: Any) -> bool:
        return self.frozen_backbone

    def check_start(self, settings: Any, origin: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        return None

    def needs_all_labels(self, settings: Any) -> bool:
        return False

    def standardized(self, settings: Any, names: Sequence[str]) -> tuple[str, ...]:
        return ()

    def views_anew(self, settings: Any, preprocess: Preprocess) -> Mapping[str, ViewAnew]:
        return {}

    def average_sees(self, settings: Any) -> str | None:
        return None

    def average_weights(self, average: Mapping[str, Tensor], settings: Any) -> Tensor | None:
        return None


def all_with_decay_on_matrices(student: BaseStudent, settings: TrainSettings) -> list[dict[str, Any]]:
    """Parameter groups as is usual: everything trains; no weight decay on biases, norms and other vectors."""
    parameters = list(student.trained().values())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
