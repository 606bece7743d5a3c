"""Owns training with the teacher in the loop, for comparison: the same steps, batches and views.

The one place beside benchmarks/ where a teacher runs while a student trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch

from ...pipeline.storage import Location
from ..compute import Compute
from ..distill import DistillStage
from ..pairs.stream import Batch, PairStream
from ..teachers import Teacher, TeacherConfig, load_teacher
from ..training.starting import BuiltStudent
from ..training.trainer import Stream


@dataclass(frozen=True, kw_only=True)
class OnlineStage(DistillStage):
    """A distillation that asks the teacher itself about every batch.

    All else is `DistillStage`: order, views, recipe, trainer, bundle. No target is read from the store, which
    still says which views there are.

    Attributes:
        teacher: takes images of the student's size.
        teacher_compute: how it runs, as it ran for the store.
    """

    teacher: TeacherConfig
    teacher_compute: Compute

    @staticmethod
    def like(stage: DistillStage, *, out: Location, teacher: TeacherConfig, compute: Compute) -> OnlineStage:
        """The same training as `stage`, but with the teacher in the loop.

        Raises:
            ValueError: the teacher wants images of another size than the student.
        """
        loaded = load_teacher(teacher).spec
        size = stage.identity["student"]["preprocess"]["size"]
        if loaded.preprocess.size != size:
            raise ValueError(f"the teacher takes {loaded.preprocess.size} pixels, the student {size}")
        how = {"weights": loaded.weights_digest, "compute": compute.to_json()}
        same = {field.name: getattr(stage, field.name) for field in fields(DistillStage)}
        return OnlineStage(
            **same | {
                "out": out, "targets": (), "identity": {**stage.identity, "teacher_in_the_loop": how},
                "origin": {**stage.origin, "teacher_in_the_loop": how},
            },
            teacher=teacher, teacher_compute=compute,
        )  # fmt: skip

    def open_pairs(self, built: BuiltStudent) -> Stream:
        pairs = super().open_pairs(built)
        assert isinstance(pairs, PairStream)
        teacher = load_teacher(self.teacher).to(torch.device(self.teacher_compute.device))
        return _AskedStream(pairs, teacher, self.teacher_compute)


class _AskedStream:
    """The batches of a stream, each with the teacher's embeddings of its images as targets."""

    def __init__(self, pairs: PairStream, teacher: Teacher, compute: Compute) -> None:
        self.steps_per_epoch = pairs.steps_per_epoch
        self._pairs, self._teacher, self._compute = pairs, teacher, compute

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for batch in self._pairs.epoch(epoch, first_step):
            with self._compute.inference():
                embedding_ND = self._teacher.embed(batch.images_NCHW.to(self._compute.device))
            yield Batch(batch.images_NCHW, batch.rows_N, {"embedding": embedding_ND})

    def close(self) -> None:
        self._pairs.close()
