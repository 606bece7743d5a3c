"""The recipe `kd`: the whole student learns the teacher's soft labels, through the teacher's class vectors.

Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...storage_schemas.class_vectors import ClassVectors
from ..students.family import Backbone
from ..students.student import Head, Student
from .recipe import Said, Settings


class Kd:
    """Any backbone.

    Its features are projected to the teacher's width and meet the teacher's class vectors, scale and
    bias (normalised where the teacher's are), so a student knows every class that the teacher has a vector
    for.
    """

    name = "kd"
    frozen_backbone = False
    defaults = Settings(
        epochs=20,
        batch_size=64,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=1,
        temperature=1.0,
        loss_weight=1.0,
        projector="linear",
        embedding_loss="none",
        embedding_weight=1.0,
    )

    def needs_embedding(self, settings: Settings) -> bool:
        return settings.embedding_loss != "none"

    def head(self, settings: Settings, backbone: Backbone, vectors: ClassVectors) -> Head:
        return Head(
            width=backbone.width,
            embed_dim=vectors.embed_dim,
            projector=settings.projector,
            normalized=vectors.normalized,
        )

    def logit_scale(self, backbone: Backbone, vectors: ClassVectors) -> float:
        """The teacher's."""
        return vectors.logit_scale

    def parameter_groups(self, student: Student, settings: Settings) -> list[dict[str, Any]]:
        """Everything; no weight decay on biases, norms and other vectors, as is usual."""
        parameters = list(student.trained().values())
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def loss(self, said: Said, settings: Settings) -> Tensor:
        """weight * T^2 * KL(teacher || student), mean over the batch; plus the embedding term, if asked for.

        That term is 1 - cosine, or the squared distance over all channels, mean over the batch.
        """
        t = settings.temperature
        divergence = F.kl_div(
            F.log_softmax(said.student_logits_NC / t, dim=1),
            F.log_softmax(said.teacher_logits_NC / t, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        loss = settings.loss_weight * t * t * divergence
        if said.teacher_embedding_ND is None or settings.embedding_loss == "none":
            return loss
        assert settings.embedding_weight is not None
        if settings.embedding_loss == "cosine":
            cosine_N = F.cosine_similarity(said.student_embedding_ND, said.teacher_embedding_ND, dim=1)
            return loss + settings.embedding_weight * (1 - cosine_N).mean()
        squares_N = (said.student_embedding_ND - said.teacher_embedding_ND).square().sum(dim=1)
        return loss + settings.embedding_weight * squares_N.mean()
