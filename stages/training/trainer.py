"""Owns a step of training, the same for every recipe; and what of it is measured, kept and stopped by.

Whatever is done in a step depends on (seed, step) alone: the pairs, the learning rate, and torch's random
numbers, which are seeded before each step. So a run that was killed and resumed ends with the same bytes, and so
does one whose steps alternate with another student's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ...pipeline.storage import Location
from ...storage_schemas.fingerprint import Fingerprint
from ..decoding.work import Pool
from ..models.class_head import Classifier
from ..models.compute import Compute
from ..models.preprocess import Preprocess
from ..recipes.recipe import LossInputs, Recipe
from ..recipes.schedule import learning_rate
from ..recipes.settings import TrainSettings
from ..students.base import BaseStudent, Outputs
from ..students.student import Student
from .average import Average
from .average_outputs import average_outputs, split_average
from .checkpoint import Best, Training, TrainState, save_best
from .ema import Ema, put
from .gradients import EagerGradients, Gradients
from .graphed import CudaGraphs, GraphedGradients
from .layer_decay import with_layer_decay
from .loggers.tracked import Tracking
from .mixture import TargetLogits
from .ranks import Ranks
from .standardize import Standardize
from .swad import Swad
from .validation import Validation

MOMENTUM = 0.9


@dataclass(kw_only=True)
class Trainer:
    """A student, a recipe, and how it is trained: what `TrainingRun` takes through the batches of a pass.

    Attributes:
        student: on its device; is trained in place.
        teacher_logits: makes the teacher's logits where the recipe needs them and the stream has embeddings, or several teachers.
        standardize: brings targets to one scale before the loss; None for none.
        student_head: forms the student's logits where it gives none itself; None where there are no class vectors.
        targets: names of those that it learns from; a batch may hold others, for other students.
        views: names of views that come beside them.
        steps_per_epoch: batches of `settings.batch_size` pairs, of which each rank gets its part.
        preprocess: of the student.
        folder: for checkpoint, log and curves.
        validation: images on which to find the best epoch; None trains to the end and keeps the last weights.
        pool: where these are decoded; None for threads.
        ranks: the processes that train this student together; only the first writes.
        compiled: whether `torch.compile` makes the student's forward and backward pass.
        text_scale: see `LossInputs`.
        cuda_graphs: whether both are recorded as CUDA graphs; for one rank, on a GPU, not compiled.
        checkpoint_every: steps between checkpoints beside those at the end of each epoch; None for no others.
        tracking: which programs show its figures, beside TensorBoard.
    """

    student: BaseStudent
    recipe: Recipe
    settings: TrainSettings
    teacher_logits: TargetLogits | None
    standardize: Standardize | None = None
    student_head: Classifier | None
    targets: tuple[str, ...]
    steps_per_epoch: int
    preprocess: Preprocess
    compute: Compute
    seed: int
    folder: Location
    fingerprint: Fingerprint
    validation: Validation | None = None
    pool: Pool | None = None
    ranks: Ranks = field(default_factory=Ranks)
    compiled: bool = False
    cuda_graphs: bool = False
    checkpoint_every: int | None = None
    tracking: Tracking = field(default_factory=Tracking)
    views: tuple[str, ...] = ()
    text_scale: float | None = None

    def __post_init__(self) -> None:
        self._device = torch.device(self.compute.device)
        self._call(Outputs(self.student))

    @property
    def device(self) -> torch.device:
        """Where the student is trained."""
        return self._device

    def prepare(self) -> Training:
        """What its steps change: the student with the optimizer and the moving average, as at the start."""
        optimizer = make_optimizer(self.recipe, self.student, self.settings)
        return Training(trainee=self.student, optimizer=optimizer, average=self._average())

    def _average(self) -> Average | None:
        settings = self.settings
        if settings.select == "swad":
            return Swad(
                self.student,
                converge=settings.swad_converge,
                tolerance=settings.swad_tolerance,
                ratio=settings.swad_ratio,
            )
        if not settings.ema:
            return None
        return Ema(self.student, settings.ema, settings.ema_start, settings.ema_steps)

    def wrap(self) -> None:
        """Take its place among the ranks, and compile: once the weights are those to go on from."""
        model = self.ranks.wrap(Outputs(self.student), self._device)
        self._call(torch.compile(model) if self.compiled else model)  # type: ignore[arg-type]
        self.student.train()

    def _call(self, model: nn.Module) -> None:
        """Let steps go through `model`, which gives all outputs of the student."""
        self._model = model
        eager = EagerGradients(
            loss=self._loss,
            model=model,
            parameters=tuple(self.student.trained().values()),
            parts=self.settings.accumulate,
        )
        self._gradients: Gradients = (
            GraphedGradients(eager, self.student, CudaGraphs(self._device)) if self.cuda_graphs else eager
        )

    def step(
        self,
        training: Training,
        images_NCHW: Tensor,
        targets: dict[str, Tensor],
        *,
        lr: float,
        step: int,
    ) -> Tensor:
        """One optimisation step on this rank's part of a batch; returns its mean loss, detached and on the device."""
        torch.manual_seed(step_seed(self.seed, step, self.ranks.rank))
        for group in training.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        if (seen := self.recipe.average_sees(self.settings)) is not None:
            assert training.average is not None
            average = average_outputs(self, training.average, targets[seen])
            targets = {name: values for name, values in targets.items() if name not in self.views} | average
        loss = self._gradients(images_NCHW, targets)
        if self.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.student.trained().values(), self.settings.clip_norm)
        training.optimizer.step()
        return loss

    def _loss(self, images_NCHW: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        if self.teacher_logits is not None:
            targets = {**targets, "logits": self.teacher_logits(targets)}
        with torch.autocast(
            self._device.type,
            torch.bfloat16,
            enabled=self.compute.autocast,
            cache_enabled=not self.cuda_graphs,  # a weight's cast from outside a recording would be frozen in it
        ):
            student: dict[str, Tensor] = self._model(images_NCHW if self.recipe.reads_images else targets)
        if self.student_head is not None and "logits" not in student:
            student = {**student, "logits": self.student_head(student["embedding"])}
        if self.standardize is not None:
            student, targets = self.standardize(student), self.standardize(targets)
        vectors_CD = None if self.student_head is None else self.student_head.vectors_CD
        found = split_average(targets)
        return self.recipe.loss(
            LossInputs(
                student=student,
                teacher=found.others,
                class_vectors_CD=vectors_CD,
                average=found.outputs,
                weights_N=found.weights_N,
                text_scale=self.text_scale,
            ),
            self.settings,
        )

    def learning_rate(self, epoch: int, step: int) -> float:
        return learning_rate(
            self.settings.schedule,
            lr=self.settings.lr,
            epoch=epoch,
            step=step,
            steps_per_epoch=self.steps_per_epoch,
            epochs=self.settings.epochs,
            warmup_epochs=self.settings.warmup_epochs,
            min_lr=self.settings.min_lr,
        )

    def validate(self, training: Training, state: TrainState) -> tuple[dict[str, float], TrainState]:
        """Figures of the weights that would count now; the state of training, with the best so far.

        An average that selects is told the loss of the weights as they are instead. The first rank measures, for all.
        """
        assert self.validation is not None
        assert self.student_head is not None  # nothing is validated without class vectors
        assert isinstance(self.student, Student)  # which only students of images have
        average = training.average
        accuracy = loss = 0.0
        if self.ranks.is_first:
            instead = {} if average is None or average.selects else average.final()
            before = put(instead, self.student)
            accuracy, loss = self.validation.measure(
                self.student, self.student_head, self.preprocess, self.compute, self.pool
            )
            put(before, self.student)
        accuracy, loss = self.ranks.agree([accuracy, loss])
        figures = {"validation_accuracy": accuracy}
        if average is not None and average.selects:
            average.measured(loss)
            return {**figures, "validation_loss": loss}, state
        if state.best is not None and accuracy <= state.best.accuracy:
            return figures, state
        epoch = state.step // self.steps_per_epoch - 1
        best = Best(epoch=epoch, step=state.step, accuracy=accuracy)
        if self.ranks.is_first:
            save_best(self.folder, training, best)
        return figures, replace(state, best=best)

    def is_over(self, state: TrainState) -> bool:
        """Whether training is at its end: all epochs are done, or it stops early."""
        epoch, within = divmod(state.step, self.steps_per_epoch)
        if epoch >= self.settings.epochs:
            return True
        patience, best = self.settings.patience, state.best
        return bool(patience and best and within == 0 and epoch - 1 - best.epoch >= patience)


def make_optimizer(recipe: Recipe, student: BaseStudent, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer over what the recipe trains."""
    groups = with_layer_decay(recipe.parameter_groups(student, settings), student, settings.layer_decay)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=MOMENTUM)
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=settings.lr, betas=settings.betas)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of torch's generators in one step (dropout, stochastic depth), another on each rank."""
    name = f"{seed}/{step}/{rank}" if rank else f"{seed}/{step}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
