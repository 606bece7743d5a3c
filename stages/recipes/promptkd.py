"""The recipe `promptkd`: a frozen CLIP image tower learns prompts and a projector into the teacher's space.

Li et al., PromptKD: Unsupervised Prompt Distillation for Vision-Language Models, CVPR 2024, arXiv 2403.02781.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.store_description import TargetSpec
from ..prompts.vision import check_tower, count_blocks
from ..students.family import Backbone
from ..students.head import Head
from ..students.student import Student
from .promptkd_settings import PromptKdSettings
from .recipe import BaseRecipe, LossInputs


class PromptKd(BaseRecipe):
    """As published for base-to-novel.

    The authors use --loss-weight 200 for aircraft, flowers, textures, and --prompt-depth 3 across data sets.
    """

    name = "promptkd"
    frozen_backbone = True
    defaults = PromptKdSettings()

    def targets(self, settings: PromptKdSettings, stored: Sequence[TargetSpec]) -> tuple[str, ...]:
        return ("logits",)

    def head(
        self,
        settings: PromptKdSettings,
        backbone: Backbone,
        vectors: ClassVectors | None,
        targets: Mapping[str, TargetSpec],
    ) -> Head:
        assert vectors is not None  # logits are among its targets
        check_tower(backbone.module)
        return Head(
            width=backbone.width,
            embed_dim=vectors.embed_dim,
            projector=settings.projector,
            prompt_length=settings.prompt_length,
            prompt_depth=min(settings.prompt_depth, count_blocks(backbone.module)),
            normalized=vectors.normalized,
        )

    def logit_scale(self, backbone: Backbone, vectors: ClassVectors) -> float:
        """The student's own, frozen, for cosines with text features.

        A teacher with a linear head has no cosines: its head is shared as it is (scale, bias, embeddings that are
        not normalised), as in SimKD (Chen et al., CVPR 2022, arXiv 2203.14001). A scale made for cosines would be
        wrong.
        """
        if vectors.normalized and backbone.logit_scale is not None:
            return backbone.logit_scale
        return vectors.logit_scale

    def parameter_groups(self, student: Student, settings: PromptKdSettings) -> list[dict[str, Any]]:
        """Prompts and projector; weight decay on all of it, batch norm and biases too, as the authors do."""
        student.freeze_backbone()
        return [{"params": list(student.trained().values()), "weight_decay": settings.weight_decay}]

    def loss(self, outputs: LossInputs, settings: PromptKdSettings) -> Tensor:
        """weight * T^2 * KL(teacher || student), summed over the batch and divided by B * C."""
        t = settings.temperature
        divergence = F.kl_div(
            F.log_softmax(outputs.student["logits"] / t, dim=1),
            F.log_softmax(outputs.teacher["logits"] / t, dim=1),
            reduction="sum",
            log_target=True,
        )
        return settings.loss_weight * t * t * divergence / outputs.student["logits"].numel()
