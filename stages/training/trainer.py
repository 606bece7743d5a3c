"""Owns the training loop: one loop for every recipe, from wherever the last checkpoint left off.

Whatever is done in a step depends on (seed, step) alone: the pairs, the learning rate, and torch's random
numbers, which are seeded before each step. So a run that was killed and resumed ends with the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ...pipeline.progress import Progress
from ...pipeline.storage import Location
from ...pipeline.types import Timer
from ...storage_schemas.fingerprint import Fingerprint
from ..models.class_head import ClassHead
from ..models.compute import Compute
from ..models.preprocess import Preprocess
from ..recipes.recipe import LossInputs, Recipe
from ..recipes.schedule import learning_rate
from ..recipes.settings import TrainSettings
from ..students.student import Outputs, Student
from .checkpoint import Best, Training, TrainState, load_best, load_checkpoint, save_best, save_checkpoint
from .ema import Ema, put
from .feed import Pairs, feed
from .ranks import Ranks, accumulating
from .run_log import LOG_EVERY, RunLog
from .validation import Validation
from .window import Window

MOMENTUM = 0.9


class Stream(Protocol):
    """What the trainer needs of a stream of pairs (see `stream.TargetStream`)."""

    steps_per_epoch: int

    def batches(self, epoch: int, first_sample: int = 0) -> Iterator[Pairs]: ...
    def close(self) -> None: ...


@dataclass(kw_only=True)
class Trainer:
    """A student, a recipe, and the stream of pairs that it is trained on.

    Attributes:
        student: on its device; is trained in place.
        teacher_head: forms the teacher's logits where the recipe needs them and the stream has embeddings only.
        student_head: forms the student's logits; None where there are no class vectors.
        stream: this rank's parts of batches of `settings.batch_size` pairs.
        preprocess: of the student.
        folder: for checkpoint, log and curves.
        validation: images on which to find the best epoch; None trains to the end and keeps the last weights.
        ranks: the processes that train this student together; only the first writes.
        compiled: whether `torch.compile` makes the student's forward and backward pass.
        checkpoint_every: steps between checkpoints beside those at the end of each epoch; None for no others.
    """

    student: Student
    recipe: Recipe
    settings: TrainSettings
    teacher_head: ClassHead | None
    student_head: ClassHead | None
    stream: Stream
    preprocess: Preprocess
    compute: Compute
    seed: int
    folder: Location
    fingerprint: Fingerprint
    validation: Validation | None = None
    ranks: Ranks = field(default_factory=Ranks)
    compiled: bool = False
    checkpoint_every: int | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        self._device = torch.device(self.compute.device)
        self._model: nn.Module = Outputs(self.student)

    def run(self, timer: Timer) -> TrainState:
        """Train from the last checkpoint to the end, which an early stop may bring. Returns its state then.

        At the end the student has the weights that count: the best where there is a validation split, the moving
        average where there is one, else the last. Time goes to `wait` (for pairs), `train`, `validate` and `write`.

        Raises:
            InputError: the loss is not finite.
            MismatchError: the checkpoint is of another run.
        """
        optimizer = make_optimizer(self.recipe, self.student, self.settings)
        ema = Ema(self.student, self.settings.ema) if self.settings.ema else None
        training = Training(trainee=self.student, optimizer=optimizer, average=ema)
        if self.ranks.is_first:
            self.folder.make_dir().remove_temporaries()
        state = load_checkpoint(self.folder, training, self.fingerprint)
        self._model = self.ranks.wrap(Outputs(self.student), self._device)
        if self.compiled:
            self._model = torch.compile(self._model)  # type: ignore[assignment]
        self.student.train()
        with self._log(state.step) as log, self._bar(state.step) as bar:
            loop = _Loop(self, training, timer, log, bar)
            while not self._is_over(state):
                state = loop.epoch(state)
        self.stream.close()
        if state.best is not None:
            self.ranks.agree(None)  # all wait until the first rank has written it
            load_best(self.folder, training, state.best)
        elif ema is not None:
            put(ema.tensors, self.student)
        return state

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        images_NCHW: Tensor,
        targets: dict[str, Tensor],
        *,
        lr: float,
        step: int,
    ) -> Tensor:
        """One optimisation step on this rank's part of a batch; returns its mean loss, detached and on the device.

        Gradients of its `settings.accumulate` equal parts add up; every recipe's loss is a mean over its samples.
        Sample i is in part i modulo the number of parts: so, over all ranks, parts hold the same samples whatever the
        number of ranks, and batch norm sees the same ones together.
        """
        torch.manual_seed(step_seed(self.seed, step, self.ranks.rank))
        parts = self.settings.accumulate
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for i in range(parts):
            part = {name: values[i::parts] for name, values in targets.items()}
            with accumulating(self._model) if i + 1 < parts else nullcontext():
                loss = self._loss(images_NCHW[i::parts], part) / parts
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if self.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.student.trained().values(), self.settings.clip_norm)
        optimizer.step()
        return total

    def _loss(self, images_NCHW: Tensor, targets: dict[str, Tensor]) -> Tensor:
        if self.teacher_head is not None and "logits" not in targets:
            targets = {**targets, "logits": self.teacher_head(targets["embedding"])}
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.compute.precision == "bf16"):
            student: dict[str, Tensor] = self._model(images_NCHW)
        if self.student_head is not None:
            student = {**student, "logits": self.student_head(student["embedding"])}
        return self.recipe.loss(LossInputs(student=student, teacher=targets), self.settings)

    def learning_rate(self, epoch: int, step: int) -> float:
        return learning_rate(
            self.settings.schedule,
            lr=self.settings.lr,
            epoch=epoch,
            step=step,
            steps_per_epoch=self.stream.steps_per_epoch,
            epochs=self.settings.epochs,
            warmup_epochs=self.settings.warmup_epochs,
        )

    def validate(self, training: Training, state: TrainState) -> tuple[float, TrainState]:
        """Accuracy of the weights that would count now; the state of training, with the best so far.

        The first rank measures, for all.
        """
        assert self.validation is not None
        assert self.student_head is not None  # nothing is validated without class vectors
        accuracy = 0.0
        if self.ranks.is_first:
            before = put(training.average.tensors, self.student) if training.average is not None else {}
            accuracy = self.validation.accuracy(self.student, self.student_head, self.preprocess, self.compute)
            put(before, self.student)
        accuracy = self.ranks.agree(accuracy)
        if state.best is not None and accuracy <= state.best.accuracy:
            return accuracy, state
        epoch = state.step // self.stream.steps_per_epoch - 1
        best = Best(epoch=epoch, step=state.step, accuracy=accuracy)
        if self.ranks.is_first:
            save_best(self.folder, training, best)
        return accuracy, TrainState(step=state.step, best=best)

    def _is_over(self, state: TrainState) -> bool:
        epoch, within = divmod(state.step, self.stream.steps_per_epoch)
        if epoch >= self.settings.epochs:
            return True
        patience, best = self.settings.patience, state.best
        return bool(patience and best and within == 0 and epoch - 1 - best.epoch >= patience)

    def _log(self, step: int) -> AbstractContextManager[RunLog | None]:
        return RunLog(self.folder, step=step) if self.ranks.is_first else nullcontext()

    def _bar(self, step: int) -> AbstractContextManager[Progress | None]:
        if not self.show_progress or not self.ranks.is_first:
            return nullcontext()
        batch = self.settings.batch_size
        total = self.stream.steps_per_epoch * self.settings.epochs * batch
        return Progress("distill (resumed)" if step else "distill", total, step * batch)


class _Loop:
    """The steps of an epoch, and what is logged and saved between them."""

    def __init__(
        self, trainer: Trainer, training: Training, timer: Timer, log: RunLog | None, bar: Progress | None
    ) -> None:
        self._trainer, self._training, self._timer, self._log, self._bar = trainer, training, timer, log, bar
        self._window = Window(timer, trainer.ranks)

    def epoch(self, state: TrainState) -> TrainState:
        """Train to the end of the epoch at hand."""
        trainer, settings = self._trainer, self._trainer.settings
        epoch, within = divmod(state.step, trainer.stream.steps_per_epoch)
        pairs = feed(trainer.stream.batches(epoch, within * settings.batch_size), trainer._device)
        self._window.restart()
        while (batch := self._window.wait_for(pairs)) is not None:
            lr = trainer.learning_rate(epoch, within)
            self._window.add(loss=trainer.step(self._training.optimizer, *batch, lr=lr, step=state.step))
            if self._training.average is not None:
                self._training.average.update()
            state, within = TrainState(step=state.step + 1, best=state.best), within + 1
            last = within == trainer.stream.steps_per_epoch
            every = trainer.checkpoint_every
            save = last or bool(every and state.step % every == 0)
            note = ""
            if save or state.step % LOG_EVERY == 0:
                figures = self._window.close(samples=settings.batch_size, step=state.step, epoch=epoch)
                if last and trainer.validation is not None:
                    with self._timer("validate"):
                        figures["validation_accuracy"], state = trainer.validate(self._training, state)
                note = self._note(state, epoch, figures | {"lr": lr})
            if save:
                if trainer.ranks.is_first:
                    with self._timer("write"):
                        save_checkpoint(trainer.folder, self._training, state, trainer.fingerprint)
                self._window.restart()
            if self._bar is not None:
                self._bar.advance(settings.batch_size, note)
        return state

    def _note(self, state: TrainState, epoch: int, figures: dict[str, float]) -> str:
        """Write figures to the log; the note for the bar."""
        if self._log is not None:
            self._log.write(step=state.step, epoch=epoch, **figures)
        note = f"epoch {epoch + 1}/{self._trainer.settings.epochs}, loss {figures['loss']:.4g}"
        note += f", waiting for data {figures['wait_share']:.0%}"
        if state.best is not None:
            note += f", best accuracy {state.best.accuracy:.1%} (epoch {state.best.epoch + 1})"
        return note


def make_optimizer(recipe: Recipe, student: Student, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer over what the recipe trains."""
    groups = recipe.parameter_groups(student, settings)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=MOMENTUM)
    return torch.optim.AdamW(groups, lr=settings.lr)


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of torch's generators in one step (dropout, stochastic depth), another on each rank."""
    name = f"{seed}/{step}/{rank}" if rank else f"{seed}/{step}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
