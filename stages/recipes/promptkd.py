"""The recipe `promptkd`: a frozen CLIP image tower learns prompts and a projector into the teacher's space.

Li et al., PromptKD: Unsupervised Prompt Distillation for Vision-Language Models, CVPR 2024, arXiv 2403.02781.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...storage_schemas.class_vectors import ClassVectors
from ..prompts.vision import check_tower, count_blocks
from ..students.family import Backbone
from ..students.student import Head, Student
from .recipe import Said, Settings


class PromptKd:
    """As published for base-to-novel.

    The authors use --loss-weight 200 for aircraft, flowers, textures, and --prompt-depth 3 across data sets.
    """

    name = "promptkd"
    frozen_backbone = True
    defaults = Settings(
        epochs=20,
        batch_size=8,
        optimizer="sgd",
        lr=0.005,
        weight_decay=5e-4,
        schedule="coop",
        warmup_epochs=1,
        temperature=1.0,
        loss_weight=1000.0,
        projector="mlp",
        prompt_length=4,
        prompt_depth=9,
    )

    def needs_embedding(self, settings: Settings) -> bool:
        return False

    def head(self, settings: Settings, backbone: Backbone, vectors: ClassVectors) -> Head:
        check_tower(backbone.module)
        assert settings.prompt_length is not None
        assert settings.prompt_depth is not None
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

        A teacher with a linear head has no cosines: its head is shared as it is (scale, bias, embeddings that
            are not
        normalised), as in SimKD (Chen et al., CVPR 2022, arXiv 2203.14001). A scale made for cosines would be
        wrong.
        """
        if vectors.normalized and backbone.logit_scale is not None:
            return backbone.logit_scale
        return vectors.logit_scale

    def parameter_groups(self, student: Student, settings: Settings) -> list[dict[str, Any]]:
        """Prompts and projector; weight decay on all of it, batch norm and biases too, as the authors do."""
        student.freeze_backbone()
        return [{"params": list(student.trained().values()), "weight_decay": settings.weight_decay}]

    def loss(self, said: Said, settings: Settings) -> Tensor:
        """weight * T^2 * KL(teacher || student), summed over the batch and divided by B * C."""
        t = settings.temperature
        divergence = F.kl_div(
            F.log_softmax(said.student_logits_NC / t, dim=1),
            F.log_softmax(said.teacher_logits_NC / t, dim=1),
            reduction="sum",
            log_target=True,
        )
        return settings.loss_weight * t * t * divergence / said.student_logits_NC.numel()
