"""A stand-in teacher, `standin:SECONDS`: each batch takes that long, on no core; its embedding is the image's mean colour."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from teachonce.stages.models.preprocess import Preprocess
from teachonce.stages.models.teacher_config import TeacherConfig
from teachonce.stages.teachers.base import BaseTeacher, Offer, TeacherSpec

SIZE = 32


class StandIn(BaseTeacher):
    """It sleeps as a GPU would work: the process waits, its other threads go on."""

    def __init__(self, spec: TeacherSpec, seconds: float) -> None:
        self.spec, self._seconds = spec, seconds
        self.loaded = spec.to_text(f"{seconds} s a batch", "")

    def to(self, device: torch.device) -> StandIn:
        return self

    def offers(self) -> tuple[Offer, ...]:
        return (Offer(name="embedding", axes=("channel",), shape=(3,)),)

    def outputs(self, images_NCHW: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
        time.sleep(self._seconds)
        return {name: images_NCHW.float().mean((2, 3)) for name in names}


def load(config: TeacherConfig) -> StandIn:
    seconds = config.model.partition(":")[2]
    own = Preprocess(size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    spec = TeacherSpec(
        family="standin",
        model=config.model,
        architecture="standin",
        weights_digest=seconds,
        embed_dim=3,
        normalized=False,
        preprocess=config.preprocess(own),
        takes_templates=False,
    )
    return StandIn(spec, float(seconds))
