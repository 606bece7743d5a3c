"""Owns the loop of prompt tuning, from wherever the last checkpoint left off.

What is done in a step depends on (seed, step) alone, so a run that was killed and resumed ends with the same bytes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from ...pipeline import stopping
from ...pipeline.progress import Progress
from ...pipeline.storage import Location
from ...pipeline.types import Timer
from ...storage_schemas.fingerprint import Fingerprint
from ...storage_schemas.plain_text import counted
from ..decoding.work import Pool
from ..models.compute import Compute
from ..models.preprocess import Normalize
from ..prompts.clip import PromptedClip
from ..recipes.schedule import learning_rate
from ..training.checkpoint import Training, TrainState, load_checkpoint, save_checkpoint
from ..training.ema import put
from ..training.ranks import Ranks
from ..training.run_log import LOG_EVERY, RunLog
from ..training.window import Window
from .averaging import GaussianAverage
from .promptsrc import BatchFeatures, promptsrc_loss
from .settings import PretrainSettings
from .shots import Shots

MOMENTUM = 0.9


@dataclass(kw_only=True)
class Tuner:
    """A model with prompts, and the shots that they are learned on.

    Attributes:
        clip: on its device; its prompts are trained in place.
        normalize: on the same device.
        ids_CT: token ids of the texts of the classes that are learned on, on the same device.
        plain_text_CD: frozen text features of these classes.
        shots, settings, compute, seed: what decides the prompts.
        pool: where the shots are decoded.
        folder: for checkpoint, log and curves.
        checkpoint_every: steps between checkpoints beside those at the end of each epoch; None for no others.
    """

    clip: PromptedClip
    normalize: Normalize
    ids_CT: Tensor
    plain_text_CD: Tensor
    shots: Shots
    pool: Pool
    settings: PretrainSettings
    compute: Compute
    seed: int
    folder: Location
    fingerprint: Fingerprint
    checkpoint_every: int | None = None
    show_progress: bool = True

    @property
    def steps_per_epoch(self) -> int:
        return len(self.shots.pictures) // self.settings.batch_size

    def run(self, timer: Timer) -> int:
        """Train from the last checkpoint to the end; the prompts are then the average over epochs. Returns all steps.

        Raises:
            InputError: the loss is not finite, or an image can no longer be used.
            MismatchError: the checkpoint is of another run.
            Stopped: a signal asked for a stop; there is a checkpoint of the last step.
        """
        settings = self.settings
        optimizer = make_optimizer(self.clip, settings)
        average = GaussianAverage(self.clip, epochs=settings.epochs, mean=settings.mean, std=settings.gpa_std)
        training = Training(trainee=self.clip, optimizer=optimizer, average=average)
        self.folder.make_dir().remove_temporaries()
        step = load_checkpoint(self.folder, training, self.fingerprint).step
        average.epochs_done = step // self.steps_per_epoch
        self.clip.eval()
        with RunLog(self.folder, step=step) as log, self._bar(step) as bar:
            window = Window(timer, Ranks())
            while step < settings.epochs * self.steps_per_epoch:
                step = self._epoch(step, training, window, log, bar, timer)
        put(average.tensors, self.clip)
        return step

    def _epoch(
        self, step: int, training: Training, window: Window, log: RunLog, bar: Progress | None, timer: Timer
    ) -> int:
        settings = self.settings
        epoch, within = divmod(step, self.steps_per_epoch)
        batches = self.shots.batches(
            epoch, batch_size=settings.batch_size, first=within, seed=self.seed, pool=self.pool
        )
        window.restart()
        while (batch := window.wait_for(batches)) is not None:
            if stopping.asked():
                self._leave_off(step, training, timer)
            lr = self.learning_rate(epoch, step % self.steps_per_epoch)
            window.add(**self.step(training.optimizer, *batch, lr=lr))
            step += 1
            last = step % self.steps_per_epoch == 0
            note = ""
            if last and training.average is not None:
                training.average.update()
            every = self.checkpoint_every
            save = last or bool(every and step % every == 0)
            if save or step % LOG_EVERY == 0:
                figures = window.close(samples=settings.batch_size, step=step, epoch=epoch)
                log.write(step=step, epoch=epoch, **figures, lr=lr)
                note = f"epoch {epoch + 1}/{settings.epochs}, loss {figures['loss']:.4g}"
            if save:
                self._save(step, training, timer)
                window.restart()
            if bar is not None:
                bar.advance(settings.batch_size, note)
        return step

    def _save(self, step: int, training: Training, timer: Timer) -> None:
        with timer("write"):
            save_checkpoint(self.folder, training, TrainState(step=step), self.fingerprint)

    def _leave_off(self, step: int, training: Training, timer: Timer) -> NoReturn:
        self._save(step, training, timer)
        all_steps = self.settings.epochs * self.steps_per_epoch
        raise stopping.stopped(self.folder, f"{step} of {counted(all_steps, 'step')} done")

    def step(
        self, optimizer: torch.optim.Optimizer, images_NCHW: Tensor, labels_N: Tensor, *, lr: float
    ) -> dict[str, Tensor]:
        """One optimisation step; returns the loss and its terms, detached and on the device.

        Args:
            optimizer: over the prompts.
            images_NCHW: uint8 (N, 3, size, size).
            labels_N: int64 (N,), places among the classes that are learned on.
            lr: learning rate.
        """
        device = torch.device(self.compute.device)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        model: Any = self.clip.model
        with torch.autocast(device.type, torch.bfloat16, enabled=self.compute.autocast):
            pixels_NCHW = self.normalize(images_NCHW.to(device))
            text_CD = self.clip.class_features(self.ids_CT, chunk=self.settings.class_chunk or None)
            image_ND = self.clip.image_features(pixels_NCHW)
            plain_image_ND = self.clip.plain_image_features(pixels_NCHW)
        features = BatchFeatures(
            image_ND=image_ND,
            text_CD=text_CD,
            plain_image_ND=plain_image_ND,
            plain_text_CD=self.plain_text_CD,
            logit_scale=model.logit_scale.detach().float().exp(),
            labels_N=labels_N.to(device),
        )
        terms = promptsrc_loss(features, self.settings)
        torch.autograd.backward([terms["loss"]])
        if self.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.clip.trained().values(), self.settings.clip_norm)
        optimizer.step()
        return {name: value.detach() for name, value in terms.items()}

    def learning_rate(self, epoch: int, step: int) -> float:
        """That of step `step` of epoch `epoch`, both from 0."""
        settings = self.settings
        return learning_rate(
            settings.schedule,
            lr=settings.lr,
            epoch=epoch,
            step=step,
            steps_per_epoch=self.steps_per_epoch,
            epochs=settings.epochs,
            warmup_epochs=settings.warmup_epochs,
        )

    def _bar(self, step: int) -> AbstractContextManager[Progress | None]:
        if not self.show_progress:
            return nullcontext()
        batch = self.settings.batch_size
        total = self.steps_per_epoch * self.settings.epochs * batch
        return Progress("pretrain (resumed)" if step else "pretrain", total, step * batch)


def make_optimizer(clip: PromptedClip, settings: PretrainSettings) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, or AdamW, over all prompts; weight decay on all of them."""
    parameters = list(clip.trained().values())
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr, momentum=MOMENTUM, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
