"""Owns one pass over the pairs: every batch goes to each student that wants it, one after another, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from typing import Protocol

from ...pipeline.progress import Progress
from ...pipeline.types import Timer
from .checkpoint import TrainState
from .common_stop import CommonStop
from .feed import Pairs, feed
from .trainer import Trainer
from .training_run import Position, TrainingRun

#: The name of a student, and its last state or what it failed by.
Ended = tuple[str, TrainState | Exception]


class Stream(Protocol):
    """What a pass needs of a stream of pairs (see `stream.TargetStream`)."""

    steps_per_epoch: int

    def batches(self, epoch: int, first_sample: int = 0) -> Iterator[Pairs]: ...
    def close(self) -> None: ...


def train_on_one_pass(
    trainers: Mapping[str, tuple[Trainer, Timer]], stream: Stream, *, show_progress: bool = True
) -> Iterator[Ended]:
    """Train students to their ends, each from where its checkpoint left it: the earliest leads, others join at their own step.

    One that fails, or is done, leaves the others to go on. A step depends on nothing but its number, so each student learns
    what it would learn alone. The stream is closed at the end. Where a signal asks for a stop, all leave off behind the step at
    hand, each with a checkpoint.

    Args:
        trainers: by name, each with what its times go to. All take the same batches, on the same device.
        stream: the pairs. Its batches hold the targets of all.
        show_progress: whether a bar counts the pairs of all.

    Yields:
        Each student as it ends. An error of the stream ends all that are left.
    """
    with ExitStack() as stack:
        stack.enter_context(closing(stream))
        runs: dict[str, TrainingRun] = {}
        for name, (trainer, timer) in trainers.items():
            try:
                runs[name] = stack.enter_context(closing(TrainingRun(trainer, timer)))
            except Exception as error:
                yield name, error
        if runs:
            first, _ = trainers[next(iter(runs))]
            shown = show_progress and first.ranks.is_first
            bar = stack.enter_context(_bar(runs) if shown else nullcontext())
            yield from _Pass(runs, stream, first, bar).run()


def _bar(runs: Mapping[str, TrainingRun]) -> AbstractContextManager[Progress]:
    done, total = (sum(counts) for counts in zip(*(run.samples for run in runs.values()), strict=True))
    return Progress("distill (resumed)" if done else "distill", total, done)


class _Pass:
    """The batches in their order, and who wants which next."""

    def __init__(self, runs: dict[str, TrainingRun], stream: Stream, first: Trainer, bar: Progress | None) -> None:
        self._runs, self._stream, self._bar = runs, stream, bar
        self._batch_size, self._device = first.settings.batch_size, first.device
        self._stop = CommonStop(first.ranks)
        self._at: dict[str, Position] = {}

    def run(self) -> Iterator[Ended]:
        for name in self._runs:
            yield from self._settle(name)
        while self._at:
            epoch, step = min(self._at.values())
            pairs = feed(self._stream.batches(epoch, step * self._batch_size), self._device)
            while takers := [name for name, position in self._at.items() if position == (epoch, step)]:
                if self._stop.is_due():
                    yield from self._leave_off()
                    return
                start = time.perf_counter()
                try:
                    images_NCHW, targets = next(pairs)
                except Exception as error:
                    yield from ((name, error) for name in self._at)
                    return
                waited = time.perf_counter() - start
                for name in takers:
                    try:
                        self._runs[name].take(images_NCHW, targets, waited=waited)
                    except Exception as error:
                        del self._at[name]
                        yield name, error
                    else:
                        self._show(name)
                        yield from self._settle(name)
                step += 1

    def _settle(self, name: str) -> Iterator[Ended]:
        """Note which batch a student wants next; where there is none, it ends."""
        run = self._runs[name]
        position = run.position
        if position is not None:
            self._at[name] = position
            return
        self._at.pop(name, None)
        try:
            state = run.finish()
        except Exception as error:
            yield name, error
        else:
            yield name, state

    def _leave_off(self) -> Iterator[Ended]:
        """End all that are left, each where it is. Nothing is yielded before all have their checkpoints."""
        ends: list[Ended] = []
        for name in self._at:
            try:
                ends.append((name, self._runs[name].stop()))
            except Exception as error:
                ends.append((name, error))
        yield from ends

    def _show(self, name: str) -> None:
        if self._bar is not None:
            note = self._runs[name].note
            self._bar.advance(self._batch_size, f"{name}: {note}" if note and len(self._runs) > 1 else note)
