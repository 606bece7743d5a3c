"""Owns training with the teacher in the loop, to compare with: the same steps, samples, boxes and recipe.

The only place where a teacher runs while a student trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from teachonce.stages.decoding.work import Pool
from teachonce.stages.distilling.pairs import TrainingPairs
from teachonce.stages.distilling.stage import DistillStage
from teachonce.stages.models.compute import Compute
from teachonce.stages.pairs.stream import Batch, TargetStream
from teachonce.stages.teachers import Teacher, TeacherConfig, load_teacher
from teachonce.stages.training.mixture import LogitsOf, Mixture

if TYPE_CHECKING:
    from teachonce.pipeline.storage import Location
    from teachonce.stages.training.build import BuiltStudent
    from teachonce.stages.training.one_pass import Stream


@dataclass(frozen=True, kw_only=True)
class OnlineStage(DistillStage):
    """A distillation that runs the teacher itself on every batch.

    All else is `DistillStage`: order, boxes, recipe, trainer, bundle. No target is read from the store, which still
    says which boxes there are.

    Attributes:
        teacher: as it was cached.
        teacher_compute: how it runs.
    """

    teacher: TeacherConfig
    teacher_compute: Compute

    @staticmethod
    def like(stage: DistillStage, *, out: Location, teacher: TeacherConfig, compute: Compute) -> OnlineStage:
        """The same training as `stage`, but with the teacher in the loop."""
        formed = LogitsOf(target="embedding", vectors=stage.vectors)
        how = {"weights": load_teacher(teacher).spec.weights_digest, "compute": compute.to_json()}
        same = {field.name: getattr(stage, field.name) for field in fields(DistillStage)}
        return OnlineStage(
            **same
            | {
                "out": out,
                "pairs": replace(stage.pairs, targets=("embedding",), sources=()),
                "chosen": replace(stage.chosen, names=("embedding",), mixture=Mixture(teachers=(formed,))),
                "identity": {**stage.identity, "teacher_in_the_loop": how},
                "origin": {**stage.origin, "teacher_in_the_loop": how},
            },
            teacher=teacher,
            teacher_compute=compute,
        )

    def open_pairs(self, pairs: TrainingPairs, built: BuiltStudent, pool: Pool) -> Stream:
        images = replace(pairs, targets=())
        stream = super().open_pairs(images, built, pool)
        assert isinstance(stream, TargetStream)
        teacher = load_teacher(self.teacher).to(torch.device(self.teacher_compute.device))
        teacher_stream, size = None, teacher.spec.preprocess.size
        if size != built.backbone.preprocess.size:
            teacher_stream = images.open(image_size=size, batch_size=self.settings.batch_size, pool=pool)
        return OnlineStream(stream, teacher_stream, teacher, self.teacher_compute)


class OnlineStream:
    """The batches of a stream, each with the teacher's embeddings of its images as targets.

    Args:
        pairs: the student's images.
        teacher_stream: the same samples and boxes at the teacher's size; None where that is the student's.
        teacher, compute: the teacher, and how it computes.
    """

    def __init__(
        self, pairs: TargetStream, teacher_stream: TargetStream | None, teacher: Teacher, compute: Compute
    ) -> None:
        self.steps_per_epoch = pairs.steps_per_epoch
        self._pairs, self._teacher_stream, self._teacher, self._compute = (
            pairs,
            teacher_stream,
            teacher,
            compute,
        )

    def batches(self, epoch: int, first_sample: int = 0) -> Iterator[Batch]:
        batches, seen_by_teacher = self._pairs.batches(epoch, first_sample), repeat(None)
        if self._teacher_stream is not None:
            seen_by_teacher = self._teacher_stream.batches(epoch, first_sample)
        for batch, seen in zip(batches, seen_by_teacher, strict=self._teacher_stream is not None):
            seen = batch if seen is None else seen
            assert torch.equal(seen.rows_N, batch.rows_N)
            with self._compute.inference():
                embedding_ND = self._teacher.embed(seen.images_NCHW.to(self._compute.device))
            yield batch._replace(targets={"embedding": embedding_ND})

    def close(self) -> None:
        self._pairs.close()
        if self._teacher_stream is not None:
            self._teacher_stream.close()
