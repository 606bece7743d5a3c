"""Owns one student's way through a pass: where it stands, and what is logged and saved between its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from ...pipeline import stopping
from ...pipeline.types import Timer
from ...storage_schemas.errors import Stopped
from ...storage_schemas.plain_text import counted
from .checkpoint import TrainState, load_best, load_checkpoint, save_checkpoint
from .ema import Ema, put
from .run_log import LOG_EVERY, RunLog
from .trainer import Trainer
from .window import Window


class Position(NamedTuple):
    """A batch of a pass. Positions compare as they follow each other.

    Attributes:
        epoch: from 0.
        step: of the epoch, from 0.
    """

    epoch: int
    step: int


class TrainingRun:
    """A trainer, from its last checkpoint on: takes batch after batch, until there is none that it wants.

    Time goes to `wait` (for pairs), `train`, `validate` and `write` of `timer`. `close` it at the end.

    Attributes:
        note: a line on how far it is, for a bar; '' where nothing is new.

    Raises:
        MismatchError, DamagedError: the checkpoint is of another run, or damaged.
    """

    def __init__(self, trainer: Trainer, timer: Timer) -> None:
        self.note = ""
        self._trainer, self._timer = trainer, timer
        self._training = trainer.prepare()
        if trainer.ranks.is_first:
            trainer.folder.make_dir().remove_temporaries()
        self._state = load_checkpoint(trainer.folder, self._training, trainer.fingerprint)
        if isinstance(self._training.average, Ema):
            self._training.average.steps_done = self._state.step
        trainer.wrap()
        self._saved = self._state.step
        self._window = Window(timer, trainer.ranks)
        self._log: RunLog | None = None
        if trainer.ranks.is_first:
            self._log = RunLog(trainer.folder, step=self._state.step, tracking=trainer.tracking)

    @property
    def position(self) -> Position | None:
        """The batch that it wants next; None where training is over."""
        average = self._training.average
        if self._trainer.is_over(self._state) or (average is not None and average.is_over):
            return None
        return Position(*divmod(self._state.step, self._trainer.steps_per_epoch))

    @property
    def samples(self) -> tuple[int, int]:
        """Pairs that it has learned from, and those of the whole training."""
        settings, steps = self._trainer.settings, self._trainer.steps_per_epoch
        return self._state.step * settings.batch_size, steps * settings.epochs * settings.batch_size

    def take(self, images_NCHW: Tensor, targets: Mapping[str, Tensor], *, waited: float) -> None:
        """One step, with the batch at `position`; whatever is due behind it is logged, measured and saved.

        Args:
            images_NCHW: uint8, on the device.
            targets: on the device, by name; those that it does not learn from are left alone.
            waited: seconds that this batch took to come.

        Raises:
            InputError: the loss is not finite.
        """
        self._window.resume(waited)
        trainer, settings, at = self._trainer, self._trainer.settings, self.position
        assert at is not None
        own = {name: targets[name] for name in (*trainer.targets, *trainer.views)}
        lr = trainer.learning_rate(at.epoch, at.step)
        self._window.add(loss=trainer.step(self._training, images_NCHW, own, lr=lr, step=self._state.step))
        if self._training.average is not None:
            self._training.average.update()
        self._state = replace(self._state, step=self._state.step + 1)
        last = at.step + 1 == trainer.steps_per_epoch
        every = trainer.checkpoint_every
        save = last or bool(every and self._state.step % every == 0)
        self.note = ""
        if save or self._state.step % LOG_EVERY == 0:
            figures = self._window.close(samples=settings.batch_size, step=self._state.step, epoch=at.epoch)
            if last and trainer.validation is not None:
                with self._timer("validate"):
                    measured, self._state = trainer.validate(self._training, self._state)
                figures |= measured
            self._report(at.epoch, figures | {"lr": lr})
        if save:
            self._save()
            self._window.restart()
        self._window.pause()

    def stop(self) -> Stopped:
        """Leave off here: the next run goes on with the batch at `position`. The error to end with."""
        if self._saved != self._state.step:
            self._save()
        steps = self._trainer.steps_per_epoch * self._trainer.settings.epochs
        return stopping.stopped(self._trainer.folder, f"{self._state.step} of {counted(steps, 'step')} done")

    def _save(self) -> None:
        """Write a checkpoint of the state."""
        if self._trainer.ranks.is_first:
            with self._timer("write"):
                save_checkpoint(self._trainer.folder, self._training, self._state, self._trainer.fingerprint)
        self._saved = self._state.step

    def finish(self) -> TrainState:
        """Give the student the weights that count, at the end; where training was then.

        They are the best where there is a validation split, the average where there is one, else the last.
        """
        trainer, average = self._trainer, self._training.average
        if self._log is not None:
            self._log.finish()
        if self._state.best is not None:
            trainer.ranks.agree(None)  # all wait until the first rank has written it
            load_best(trainer.folder, self._training, self._state.best)
        elif average is not None:
            put(average.final(), trainer.student)
            return replace(self._state, average=average.about())
        return self._state

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()

    def _report(self, epoch: int, figures: dict[str, float]) -> None:
        """Write figures to the log, and a note for the bar."""
        if self._log is not None:
            self._log.write(step=self._state.step, epoch=epoch, **figures)
        self.note = f"epoch {epoch + 1}/{self._trainer.settings.epochs}, loss {figures['loss']:.4g}"
        self.note += f", waiting for data {figures['wait_share']:.0%}"
        if (best := self._state.best) is not None:
            self.note += f", best accuracy {best.accuracy:.1%} (epoch {best.epoch + 1})"
