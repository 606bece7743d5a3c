"""Owns the proof, step by step, that training from the store is training with the teacher in the loop.

As many views as epochs, teacher and student in fp32. The online training is compared with others of the same seed.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from online import OnlineStage
from step_record import StepRecord, recorded
from task import Task
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.decoding.threads import Threads
from teachonce.stages.decoding.work import Pool
from teachonce.stages.distilling.pairs import TrainingPairs
from teachonce.stages.distilling.stage import DistillStage
from teachonce.stages.models.class_head import ClassHead
from teachonce.stages.pairs.store import open_store
from teachonce.stages.pairs.stream import Batch
from teachonce.stages.recipes.registry import recipe_named
from teachonce.stages.training.build import BuiltStudent, build_student
from teachonce.stages.training.one_pass import Stream
from teachonce.storage_schemas.store_description import StoreDescription
from teachonce.storage_schemas.target_store import read_target
from trial import plan

#: What is compared with the online training: targets in fp32; in the default encoding; in fp32 with the last bit of
#: every logit moved up or down at random; and each image under the target of the next epoch's view, which must show.
WAYS = ("cached", "fp16", "last bit", "wrong view")

#: Changes the logits (sample, class) of a batch, given its rows and its epoch.
Change = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class ChangedStage(DistillStage):
    """A distillation whose targets are changed on their way from the store."""

    change: Change

    @staticmethod
    def like(stage: DistillStage, change: Change) -> ChangedStage:
        """The same training as `stage` but for the targets."""
        same = {field.name: getattr(stage, field.name) for field in fields(DistillStage)}
        return ChangedStage(**same, change=change)

    def open_pairs(self, pairs: TrainingPairs, built: BuiltStudent, pool: Pool) -> Stream:
        return _ChangedStream(super().open_pairs(pairs, built, pool), self.change)


class _ChangedStream:
    def __init__(self, pairs: Stream, change: Change) -> None:
        self.steps_per_epoch = pairs.steps_per_epoch
        self._pairs, self._change = pairs, change

    def batches(self, epoch: int, first_sample: int = 0) -> Iterator[Batch]:
        for batch in self._pairs.batches(epoch, first_sample):
            logits_NC = self._change(batch.targets["logits"], batch.rows_N, epoch)
            yield batch._replace(targets={"logits": logits_NC})

    def close(self) -> None:
        self._pairs.close()


def move_last_bits(logits_NC: torch.Tensor, rows_N: torch.Tensor, epoch: int) -> torch.Tensor:
    """Every logit's neighbour among fp32 numbers, above or below: as much as the order of sums in a teacher may do."""
    generator = torch.Generator().manual_seed(epoch * 1_000_003 + int(rows_N[0]))
    up_NC = torch.rand(logits_NC.shape, generator=generator) < 0.5
    return torch.nextafter(logits_NC, torch.where(up_NC, torch.inf, -torch.inf))


def next_view(stage: DistillStage) -> Change:
    """The fault that a proof must notice: targets of view e + 1 in epoch e."""
    logits_NVC = stored_logits(stage)

    def change(logits_NC: torch.Tensor, rows_N: torch.Tensor, epoch: int) -> torch.Tensor:
        return logits_NVC[rows_N, (epoch + 1) % logits_NVC.shape[1]]

    return change


def stored_logits(stage: DistillStage) -> torch.Tensor:
    """All logits of the store that a stage reads, decoded: fp32 (sample, view, class)."""
    root = open_store(stage.pairs.store)
    spec = StoreDescription.read(root, where=stage.pairs.store).spec
    shards = [
        np.stack([read_target(root, spec, shard, "logits", view) for view in range(spec.num_views)], axis=1)
        for shard in range(spec.num_shards)
    ]
    return torch.from_numpy(np.concatenate(shards))


@dataclass(frozen=True)
class Proof:
    """Recorded trainings of one recipe and seed.

    Attributes:
        online: with the teacher in the loop.
        others: by name, see `WAYS`.
        target_difference: largest difference of any logit between the store and the teacher in the loop, in an epoch.
    """

    recipe: str
    online: StepRecord
    others: Mapping[str, StepRecord]
    target_difference: float

    @property
    def steps(self) -> int:
        return len(self.online.losses)

    def loss_difference(self, way: str, step: int | None = None) -> float:
        """Largest relative difference to the online loss in the first `step` steps (all)."""
        ours, online = np.array(self.others[way].losses[:step]), np.array(self.online.losses[:step])
        return float((np.abs(ours - online) / np.abs(online)).max())

    def weight_difference(self, way: str, step: int | None = None, *, acting: bool = True) -> float:
        """Norm of the difference to the online weights after `step` steps (all), relative to their norm.

        Of the weights that the output depends on, or of all (see `step_record.acting`).
        """
        step = self.steps if step is None else step
        chosen = self.online.acting if acting else torch.ones_like(self.online.acting)
        ours, online = self.others[way].weights[step][chosen], self.online.weights[step][chosen]
        return float((ours - online).norm() / online.norm())


def prove(task: Task, recipe: str, *, epochs: int, seed: int, scratch: Path, ways: Sequence[str] = WAYS) -> Proof:
    """Train online and in other ways. The task's stores must have been made, with as many views as epochs."""

    def stage(way: str, encoding: str = "fp32") -> DistillStage:
        shutil.rmtree(scratch / way, ignore_errors=True)
        return plan(task, recipe, epochs=epochs, views=epochs, seed=seed, out=scratch / way, encoding=encoding)

    def changed(way: str) -> DistillStage:
        plain = stage(way, "fp16" if way == "fp16" else "fp32")
        if way == "last bit":
            return ChangedStage.like(plain, move_last_bits)
        return ChangedStage.like(plain, next_view(plain)) if way == "wrong view" else plain

    like = stage("online")
    online = OnlineStage.like(like, out=like.out, teacher=task.teacher, compute=task.teacher_compute)
    others = {way: _walk(changed(way)) for way in ways}
    return Proof(recipe, _walk(online), others, target_difference(online))


def target_difference(online: OnlineStage) -> float:
    """Run the teacher on the first epoch's batches, and compare with the store: a teacher's last bits may depend
    on which images it sees together."""
    built = build_student(online.config, recipe_named(online.recipe), online.settings, online.vectors, seed=online.seed)
    stored_NVC, head, largest = stored_logits(online), ClassHead(online.vectors), 0.0
    stream = online.open_pairs(online.pairs, built, Threads(0))
    for batch in stream.batches(0):
        asked_NC = head(batch.targets["embedding"])
        largest = max(largest, float((asked_NC - stored_NVC[batch.rows_N, 0]).abs().max()))
    stream.close()
    return largest


def round_steps(total: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, … and the last step."""
    steps = (d * 10**p for p in itertools.count() for d in (1, 2, 5))
    return [*itertools.takewhile(lambda step: step < total, steps), total]


def _walk(stage: DistillStage) -> StepRecord:
    with recorded(set(round_steps(stage.samples // stage.settings.batch_size))) as record:
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return record
