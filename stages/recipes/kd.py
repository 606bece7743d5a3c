"""The recipe `kd`: the whole student learns the teacher's soft labels, through the teacher's class vectors.

Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.store_description import TargetSpec
from ..students.family import Backbone
from ..students.head import Head
from ..students.projectors import CLASSES
from ..students.student import Student
from .kd_settings import KdSettings
from .recipe import BaseRecipe, LossInputs, all_with_decay_on_matrices


class Kd(BaseRecipe):
    """Any backbone.

    Its features are projected to the teacher's width and compared with the teacher's class vectors, scale and
    bias (normalised where the teacher's are), so a student has every class that the teacher has a vector
    for. Or a layer of its own gives logits of these classes, and that layer's rows become the student's class vectors.
    """

    name = "kd"
    defaults = KdSettings()

    def targets(self, settings: KdSettings, stored: Sequence[TargetSpec]) -> tuple[str, ...]:
        embedding = () if settings.embedding_loss == "none" else ("embedding",)
        return ("logits", *embedding, *(("label",) if settings.label_weight else ()))

    def head(
        self,
        settings: KdSettings,
        backbone: Backbone,
        vectors: ClassVectors | None,
        targets: Mapping[str, TargetSpec],
    ) -> Head:
        assert vectors is not None  # logits are among its targets
        if settings.projector == CLASSES:
            return Head(
                width=backbone.width,
                embed_dim=backbone.width,
                projector="none",
                normalized=False,
                classes=vectors.num_classes,
            )
        return Head(
            width=backbone.width,
            embed_dim=vectors.embed_dim,
            projector=settings.projector,
            normalized=vectors.normalized,
        )

    def parameter_groups(self, student: Student, settings: KdSettings) -> list[dict[str, Any]]:
        return all_with_decay_on_matrices(student, settings)

    def loss(self, outputs: LossInputs, settings: KdSettings) -> Tensor:
        """weight * T^2 * KL(teacher || student), mean over the batch; plus the terms of embeddings and labels, if they have weights.

        That of embeddings is 1 - cosine, or the squared distance over all channels, mean over the batch. That of labels is the
        cross entropy of the student at T = 1, summed over the images that have a label and divided by all of the batch.
        """
        t = settings.temperature
        divergence = F.kl_div(
            F.log_softmax(outputs.student["logits"] / t, dim=1),
            F.log_softmax(outputs.teacher["logits"] / t, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        loss = settings.loss_weight * t * t * divergence
        if settings.label_weight:
            student_NC, label_N = outputs.student["logits"], outputs.teacher["label"]
            entropy = F.cross_entropy(student_NC, label_N, ignore_index=-1, reduction="sum")
            loss = loss + settings.label_weight * entropy / len(label_N)
        if settings.embedding_loss == "none":
            return loss
        student_ND, teacher_ND = outputs.student["embedding"], outputs.teacher["embedding"]
        if settings.embedding_loss == "cosine":
            cosine_N = F.cosine_similarity(student_ND, teacher_ND, dim=1)
            return loss + settings.embedding_weight * (1 - cosine_N).mean()
        return loss + settings.embedding_weight * (student_ND - teacher_ND).square().sum(dim=1).mean()
