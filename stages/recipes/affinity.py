"""The recipe `affinity`: an image encoder learns how like the teacher finds each image of a batch and each caption.

MobileCLIP: Vasu, Pouransari, Faghri, Vemulapalli, Tuzel, MobileCLIP: Fast Image-Text Models through Multi-Modal Reinforced
Training, CVPR 2024, arXiv 2311.17049, equation 3. The text side is the teacher's, as it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.store_description import TargetSpec
from ..students.family import Backbone
from ..students.head import Head
from ..students.student import Student
from .affinity_settings import AffinitySettings
from .recipe import BaseRecipe, LossInputs, all_with_decay_on_matrices

#: The targets of the loss: of the teacher's store, and of captions.
_EMBEDDING, _CAPTION, _COUNT = "embedding", "caption", "caption_count"

#: A logit of what is not in the batch: its probability is 0, and its logarithm finite.
_NOT_THERE = -1e9


class Affinity(BaseRecipe):
    """Any backbone; its features are projected to the teacher's width and L2-normalised."""

    name = "affinity"
    defaults = AffinitySettings()
    compares_samples = True

    def targets(self, settings: AffinitySettings, stored: Sequence[TargetSpec]) -> tuple[str, ...]:
        if _EMBEDDING not in {target.name for target in stored}:
            raise InputError(
                "the store holds no embeddings",
                code="target-not-in-store",
                where="--recipe affinity",
                expected=_EMBEDDING,
                found=", ".join(target.name for target in stored),
                hint="teachonce cache SHARDS --targets embedding --teacher … --out ANOTHER_STORE",
            )
        return (_EMBEDDING, _CAPTION, _COUNT)

    def head(
        self,
        settings: AffinitySettings,
        backbone: Backbone,
        vectors: ClassVectors | None,
        targets: Mapping[str, TargetSpec],
    ) -> Head:
        return Head(
            width=backbone.width,
            embed_dim=targets[_EMBEDDING].shape[0],
            projector=settings.projector,
            normalized=True,
        )

    def parameter_groups(self, student: Student, settings: AffinitySettings) -> list[dict[str, Any]]:
        return all_with_decay_on_matrices(student, settings)

    def loss(self, outputs: LossInputs, settings: AffinitySettings) -> Tensor:
        """Of each place of captions, the mean over places of w * affinity + (1 - w) * contrastive.

        With s the teacher's logit scale, logits are s * (image · captionᵀ) over the batch, once of the teacher's embeddings of
        images and once of the student's; captions are the teacher's in both. Affinity is the mean of KL(teacher || student) over images
        (softmax over captions) and over captions (softmax over images); contrastive is CLIP's loss, cross entropy to an image's own
        caption in both directions. Samples without a caption are no part of the batch: 0 where none has any.
        """
        assert outputs.text_scale is not None  # captions are among its targets
        caption_KND = outputs.teacher[_CAPTION].transpose(0, 1)
        has_N = outputs.teacher[_COUNT] > 0
        student_KNN = outputs.text_scale * outputs.student[_EMBEDDING] @ caption_KND.mT
        teacher_KNN = outputs.text_scale * outputs.teacher[_EMBEDDING] @ caption_KND.mT
        terms = []
        for student, teacher in ((student_KNN, teacher_KNN), (student_KNN.mT, teacher_KNN.mT)):
            ours_KNN = F.log_softmax(student.masked_fill(~has_N, _NOT_THERE), dim=2)
            theirs_KNN = F.log_softmax(teacher.masked_fill(~has_N, _NOT_THERE), dim=2)
            affinity_KN = (theirs_KNN.exp() * (theirs_KNN - ours_KNN)).sum(dim=2)
            contrastive_KN = -ours_KNN.diagonal(dim1=1, dim2=2)
            weight = settings.affinity_weight
            terms.append(weight * affinity_KN + (1 - weight) * contrastive_KN)
        loss_KN = torch.where(has_N, torch.stack(terms).mean(dim=0), 0)
        return loss_KN.sum(dim=1).mean() / has_N.sum().clamp(min=1)
