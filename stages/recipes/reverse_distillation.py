"""The recipe `reverse-distillation`: a decoder learns to give a teacher's maps of faultless images back from a small code of them.

Deng and Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022, arXiv 2201.10703. Where the maps of an
image do not come back, it shows what the images of the training did not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.store_description import TargetSpec
from ..students.base import BaseStudent
from ..students.decoder import check_shapes, code_channels, finest_first
from ..students.family import Backbone
from ..students.head import Head, Level
from .features import target_names
from .recipe import BaseRecipe, LossInputs
from .reverse_distillation_settings import ReverseDistillationSettings

#: Axes of a map, beside sample and view.
_MAP = ("channel", "y", "x")

#: So that a map of zeros has a cosine: the `eps` of torch's `CosineSimilarity`.
_SMALLEST_NORM = 1e-8


class ReverseDistillation(BaseRecipe):
    """Decoders alone (`--student decoder:NAME`). The maps are both what they read and what they are compared with."""

    name = "reverse-distillation"
    reads_images = False
    defaults = ReverseDistillationSettings()

    def targets(self, settings: ReverseDistillationSettings, stored: Sequence[TargetSpec]) -> tuple[str, ...]:
        """The levels, finest first: those that are named, or all maps of the store."""
        maps = {target.name: target.shape for target in stored if target.axes[2:] == _MAP}
        names = target_names(settings.feature_targets, tuple(maps), what="maps")
        if not names:
            raise InputError(
                "the store holds no maps",
                code="features-not-in-store",
                where="--recipe reverse-distillation",
                expected="targets with the axes channel, y, x",
                found=", ".join(target.name for target in stored),
                hint="teachonce cache SHARDS --targets features.layer1,features.layer2,features.layer3 --teacher … --out ANOTHER_STORE",
            )
        ordered = finest_first({name: maps[name] for name in names})
        check_shapes({name: maps[name] for name in ordered})
        return tuple(ordered)

    def head(
        self,
        settings: ReverseDistillationSettings,
        backbone: Backbone,
        vectors: ClassVectors | None,
        targets: Mapping[str, TargetSpec],
    ) -> Head:
        shapes = {name: target.shape for name, target in targets.items()}
        names = finest_first(shapes)
        code = code_channels([shapes[name] for name in names])
        levels = tuple(
            Level(
                target=name,
                layer=f"stages.{len(names) - 1 - place}",
                width=shapes[name][0],
                shape=list(shapes[name]),
                projector="none",
            )
            for place, name in enumerate(names)
        )
        return Head(width=code, embed_dim=code, projector="none", normalized=False, levels=levels)

    def parameter_groups(self, student: BaseStudent, settings: ReverseDistillationSettings) -> list[dict[str, Any]]:
        """All of the decoder; weight decay, if any, on all that trains."""
        return [{"params": list(student.trained().values()), "weight_decay": settings.weight_decay}]

    def loss(self, outputs: LossInputs, settings: ReverseDistillationSettings) -> Tensor:
        """The sum over levels of the mean over samples of 1 - cosine of the two maps, each flattened to one vector."""
        terms = []
        for name, teacher_NCYX in outputs.teacher.items():
            terms.append((1 - _cosines(outputs.student[name], teacher_NCYX)).mean())
        return torch.stack(terms).sum()


def _cosines(student_NCYX: Tensor, teacher_NCYX: Tensor) -> Tensor:
    """Of each sample's two maps as vectors (N,), as torch's `CosineSimilarity` has it.

    As one product and two norms, in the order in which the student's maps lie in memory: these are the largest tensors of a step, and
    torch's own writes several more of that size, forward and backward.
    """
    if student_NCYX.is_contiguous(memory_format=torch.channels_last):
        teacher_NCYX = teacher_NCYX.contiguous(memory_format=torch.channels_last)
        student_NCYX, teacher_NCYX = (maps.permute(0, 2, 3, 1) for maps in (student_NCYX, teacher_NCYX))
    student_ND, teacher_ND = student_NCYX.flatten(1), teacher_NCYX.flatten(1)
    product_N = torch.bmm(student_ND[:, None], teacher_ND[:, :, None]).flatten()
    cosine_N: Tensor = product_N / (_norms(student_ND) * _norms(teacher_ND))
    return cosine_N


def _norms(maps_ND: Tensor) -> Tensor:
    norms_N: Tensor = torch.linalg.vector_norm(maps_ND, dim=1).clamp(min=_SMALLEST_NORM)
    return norms_N
