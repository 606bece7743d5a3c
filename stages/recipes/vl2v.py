"""The recipe `vl2v`: a vision model learns a vision-language teacher's image embeddings and its text vectors of the labels.

VL2V-ADiP: Addepalli, Asokan, Sharma, Babu, Leveraging Vision-Language Models for Improving Domain Generalization in Image
Classification, CVPR 2024, arXiv 2310.08255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.store_description import TargetSpec
from ..students.family import Backbone
from ..students.head import Head
from ..students.student import Student
from .recipe import BaseRecipe, LossInputs
from .vl2v_settings import Vl2vSettings

#: The targets of the loss.
_EMBEDDING, _LABEL = "embedding", "label"


class Vl2v(BaseRecipe):
    """Any backbone, in two trainings: first a linear projection of its features to the teacher's embedding, then, under this
    projection, the backbone."""

    name = "vl2v"
    frozen_backbone = True
    defaults = Vl2vSettings()

    def keeps_backbone(self, settings: Vl2vSettings) -> bool:
        return settings.stage == 1

    def check_start(self, settings: Vl2vSettings, origin: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        """Stage 2 starts from the student of stage 1, with its projection."""
        if settings.stage == 1 or (origin is not None and origin.get("recipe") == self.name and "projector" in parts):
            return
        if origin is None:
            found = "another start"
        elif origin.get("recipe") != self.name:
            found = f"a student of recipe {origin.get('recipe')}"
        else:
            found = "a projection to another width"
        raise InputError(
            "stage 2 starts from the student of stage 1",
            code="stage-one-needed",
            where="--stage 2",
            expected="--student-pretrained BUNDLE, of --recipe vl2v --stage 1 with this teacher",
            found=found,
            hint="teachonce distill SHARDS STORE --recipe vl2v --stage 1 … --out BUNDLE",
        )

    def needs_all_labels(self, settings: Vl2vSettings) -> bool:
        return True

    def targets(self, settings: Vl2vSettings, stored: Sequence[TargetSpec]) -> tuple[str, ...]:
        if _EMBEDDING not in {target.name for target in stored}:
            raise InputError(
                "the store holds no embeddings",
                code="target-not-in-store",
                where="--recipe vl2v",
                expected=_EMBEDDING,
                found=", ".join(target.name for target in stored),
                hint="teachonce cache SHARDS --targets embedding --teacher … --out ANOTHER_STORE",
            )
        return (_EMBEDDING, _LABEL)

    def head(
        self,
        settings: Vl2vSettings,
        backbone: Backbone,
        vectors: ClassVectors | None,
        targets: Mapping[str, TargetSpec],
    ) -> Head:
        assert vectors is not None  # labels are among its targets
        if not vectors.normalized:
            raise InputError(
                "recipe vl2v needs a teacher of images and text, whose class vectors are compared by cosine",
                code="vectors-not-normalized",
                where="class vectors",
                expected="those of a CLIP model",
                found="the rows of a classifier",
                hint="choose an open_clip teacher, or --recipe kd",
            )
        return Head(width=backbone.width, embed_dim=vectors.embed_dim, projector="linear", normalized=True)

    def parameter_groups(self, student: Student, settings: Vl2vSettings) -> list[dict[str, Any]]:
        """The projection in stage 1, the backbone in stage 2; weight decay, if any, on all of it, as the authors do."""
        if settings.stage == 1:
            student.freeze_backbone()
        else:
            student.projector.requires_grad_(False)
        return [{"params": list(student.trained().values()), "weight_decay": settings.weight_decay}]

    def loss(self, outputs: LossInputs, settings: Vl2vSettings) -> Tensor:
        """-w * cos(student, teacher's image) - (1 - w) * cos(student, class vector of the label), mean over the batch."""
        assert outputs.class_vectors_CD is not None
        student_ND, image_ND = outputs.student[_EMBEDDING], outputs.teacher[_EMBEDDING]
        text_ND = outputs.class_vectors_CD[outputs.teacher[_LABEL]]
        to_image_N = F.cosine_similarity(student_ND, image_ND, dim=1)
        to_text_N = F.cosine_similarity(student_ND, text_ND, dim=1)
        return -(settings.image_weight * to_image_N + (1 - settings.image_weight) * to_text_N).mean()
