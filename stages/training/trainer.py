"""Owns the training loop: one loop for every recipe, from wherever the last checkpoint left off.

Whatever is done in a step depends on (seed, step) alone: the pairs, the learning rate, and torch's random
numbers, which are seeded before each step. So a run that was killed and resumed ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...pipeline.progress import Progress
from ...pipeline.storage import Location
from ...pipeline.types import Timer
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Fingerprint
from ..compute import Compute
from ..recipes import Recipe, Said, Settings
from ..students.student import ClassHead, Student
from .checkpoint import load_checkpoint, save_checkpoint
from .run_log import LOG_EVERY, RunLog
from .schedule import learning_rate

MOMENTUM = 0.9

#: Name of the checkpoint in the run's folder.
CHECKPOINT = "checkpoint.safetensors"


class Pairs(Protocol):
    """What the trainer wants of a batch (see `stream.Batch`)."""

    @property
    def images_NCHW(self) -> Tensor: ...
    @property
    def targets(self) -> Mapping[str, Tensor]: ...


class Stream(Protocol):
    """What the trainer wants of a stream of pairs (see `stream.PairStream`)."""

    steps_per_epoch: int

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Any]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A student, a recipe, and the teacher's words.

    Attributes:
        student: on its device; is trained in place.
        teacher_head: forms the teacher's logits where the stream brings embeddings only.
        student_head: forms the student's logits.
        stream: batches of `settings.batch_size` pairs.
        folder: for checkpoint, log and curves.
        checkpoint_every: steps between checkpoints beside those at the end of each epoch; None for no others.
    """

    student: Student
    recipe: Recipe
    settings: Settings
    teacher_head: ClassHead
    student_head: ClassHead
    stream: Stream
    compute: Compute
    seed: int
    folder: Location
    fingerprint: Fingerprint
    checkpoint_every: int | None = None
    show_progress: bool = True

    def run(self, timer: Timer) -> None:
        """Train from the last checkpoint to the end. Time goes to `wait` (for pairs), `train` and `write`.

        Raises:
            InputError: the loss is not finite.
            MismatchError: the checkpoint is of another run.
        """
        optimizer = make_optimizer(self.recipe, self.student, self.settings)
        self.folder.make_dir().remove_temporaries()
        location = self.folder / CHECKPOINT
        step = load_checkpoint(location, self.student, optimizer, fingerprint=self.fingerprint)
        per_epoch, batch = self.stream.steps_per_epoch, self.settings.batch_size
        total = per_epoch * self.settings.epochs * batch
        window = _Window(timer)
        self.student.train()
        title = "distill (resumed)" if step else "distill"
        with (
            RunLog(self.folder, step=step) as log,
            Progress(title, total, step * batch) if self.show_progress else _Silent() as bar,
        ):
            for epoch in range(step // per_epoch, self.settings.epochs):
                pairs = self.stream.epoch(epoch, step % per_epoch)
                while (batch_of_pairs := window.wait_for(pairs)) is not None:
                    lr = self._learning_rate(epoch, step % per_epoch)
                    window.add(self.step(optimizer, batch_of_pairs, lr=lr, step=step))
                    step += 1
                    last = step % per_epoch == 0
                    save = last or bool(self.checkpoint_every and step % self.checkpoint_every == 0)
                    if save or step % LOG_EVERY == 0:
                        figures = window.close(samples=batch, step=step, epoch=epoch)
                        log.write(step=step, epoch=epoch, lr=lr, **figures)
                        note = f"epoch {epoch + 1}/{self.settings.epochs}, loss {figures['loss']:.4g}"
                    else:
                        note = ""
                    if save:
                        with timer("write"):
                            save_checkpoint(
                                location, self.student, optimizer, step=step, fingerprint=self.fingerprint
                            )
                        window.restart()
                    bar.advance(batch, note)
        self.stream.close()

    def step(self, optimizer: torch.optim.Optimizer, pairs: Pairs, *, lr: float, step: int) -> Tensor:
        """One optimisation step; returns its loss, detached and on the device."""
        torch.manual_seed(step_seed(self.seed, step))
        device = torch.device(self.compute.device)
        images_NCHW = pairs.images_NCHW.to(device, non_blocking=True)
        targets = {name: value.to(device, non_blocking=True) for name, value in pairs.targets.items()}
        teacher_embedding_ND, teacher_logits_NC = targets.get("embedding"), targets.get("logits")
        if teacher_logits_NC is None:
            assert teacher_embedding_ND is not None
            teacher_logits_NC = self.teacher_head(teacher_embedding_ND)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.compute.precision == "bf16"):
            embedding_ND = self.student(images_NCHW)
        said = Said(
            student_embedding_ND=embedding_ND,
            student_logits_NC=self.student_head(embedding_ND),
            teacher_logits_NC=teacher_logits_NC,
            teacher_embedding_ND=teacher_embedding_ND,
        )
        loss = self.recipe.loss(said, self.settings)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    def _learning_rate(self, epoch: int, step: int) -> float:
        return learning_rate(
            self.settings.schedule, lr=self.settings.lr, epoch=epoch, step=step,
            steps_per_epoch=self.stream.steps_per_epoch, epochs=self.settings.epochs,
            warmup_epochs=self.settings.warmup_epochs,
        )  # fmt: skip


def make_optimizer(recipe: Recipe, student: Student, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer over what the recipe trains."""
    groups = recipe.parameter_groups(student, settings)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=MOMENTUM)
    return torch.optim.AdamW(groups, lr=settings.lr)


def step_seed(seed: int, step: int) -> int:
    """The seed of torch's generators in one step (dropout, stochastic depth)."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest(), "little") >> 1


class _Window:
    """Loss and time between two lines of the log. The loss stays on the device until then."""

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self.restart()

    def restart(self) -> None:
        """Begin anew; what was since `close` is not counted."""
        self._start = time.perf_counter()
        self._waited = 0.0
        self._losses: list[Tensor] = []

    def wait_for(self, pairs: Iterator[Pairs]) -> Pairs | None:
        start = time.perf_counter()
        batch = next(pairs, None)
        self._waited += time.perf_counter() - start
        return batch

    def add(self, loss: Tensor) -> None:
        self._losses.append(loss)

    def close(self, *, samples: int, step: int, epoch: int) -> dict[str, float]:
        """Figures since the last call.

        Raises:
            InputError: a loss was not finite.
        """
        losses = torch.stack(self._losses).tolist()
        seconds = time.perf_counter() - self._start
        for offset, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise InputError(
                    "the loss is not finite", found=loss,
                    where=f"step {step - len(losses) + offset + 1}, epoch {epoch + 1}",
                    hint="use a smaller --lr, longer --warmup-epochs or --precision fp32, and another --out",
                )  # fmt: skip
        self._timer.add("wait", self._waited)
        self._timer.add("train", seconds - self._waited)
        figures = {
            "loss": math.fsum(losses) / len(losses),
            "samples_per_second": samples * len(losses) / seconds,
            "wait_share": self._waited / seconds,
        }
        self.restart()
        return figures


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def advance(self, count: int, note: str = "") -> None:
        return None
