"""Owns the gradients of one step as a CUDA graph: recorded once, then replayed with one launch instead of hundreds.

A graph reads and writes the same memory on every replay. So batches are copied into tensors of the recording, gradients and
loss come out in such tensors, and the optimizer, which follows a schedule, stays outside. Random numbers come from torch's
generator, whose seed and offset a replay reads anew: a step that is seeded draws what it would draw eagerly.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ...storage_schemas.errors import InputError
from .gradients import EagerGradients

#: Steps before the recording, in which libraries choose kernels and allocate what they keep.
WARM_UP = 3

#: How far loss and norm of the gradients of the first replay may be from those of the same step done eagerly. Kernels may
#: differ in low bits; numbers that were drawn on the CPU, and so were frozen in the recording, differ by far more.
TOLERANCE = 1e-2

#: Of the recording, so that what is frozen in it is not what the step at hand would draw.
_OTHER_SEED = 0x5EED

_HINT = "leave out --cuda-graphs"


class Recorder(Protocol):
    """Records work on a device."""

    def warm_up(self, work: Callable[[], Tensor], times: int) -> None:
        """Do the work, as it will be recorded."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Record the work without doing it; what it gives, and what does it again into the very same tensors."""


class CudaGraphs:
    """Whole-network capture, as in "CUDA Graphs" of torch's notes on CUDA semantics."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, work: Callable[[], Tensor], times: int) -> None:
        """In the stream of the recording: libraries keep workspaces by stream."""
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            for _ in range(times):
                work()
        current.wait_stream(self._side)

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Other threads of this process may use the device meanwhile (to lock memory for copies)."""
        gc.collect()  # what the collector frees during a recording may break it
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._side, capture_error_mode="thread_local"):
            loss = work()
        return loss, graph.replay


@dataclass(frozen=True, kw_only=True)
class _Recording:
    """Tensors that a recorded step reads and writes, and what replays it."""

    images_NCHW: Tensor
    targets: Mapping[str, Tensor]
    loss: Tensor
    gradients: Sequence[Tensor | None]
    replay: Callable[[], None]


class GraphedGradients:
    """`EagerGradients`, recorded for each shape of batch, and for training and evaluation mode.

    Args:
        eager: what is recorded. Nothing in it may depend on values on the device, or on random numbers of the CPU.
        student: its mode counts, and its buffers (batch norm's averages) are those that steps change.
        recorder: of the device.

    Raises:
        InputError: on the first batch of a shape, a step that cannot be recorded, or that a replay does not repeat.
    """

    def __init__(self, eager: EagerGradients, student: nn.Module, recorder: Recorder) -> None:
        self._eager, self._student, self._recorder = eager, student, recorder
        self._recordings: dict[object, _Recording] = {}

    def __call__(self, images_NCHW: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        shapes = {name: (values.shape, values.dtype) for name, values in targets.items()}
        key = (images_NCHW.shape, tuple(sorted(shapes.items())), self._student.training)
        recording = self._recordings.get(key)
        if recording is not None:
            return self._replayed(recording, images_NCHW, targets)
        recording = self._recordings[key] = self._record(images_NCHW, targets)
        return self._checked(recording, images_NCHW, targets)

    def _replayed(self, recording: _Recording, images_NCHW: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        recording.images_NCHW.copy_(images_NCHW, non_blocking=True)
        for name, values in targets.items():
            recording.targets[name].copy_(values, non_blocking=True)
        recording.replay()
        for parameter, gradient in zip(self._eager.parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.loss.clone()  # the next replay overwrites it

    def _record(self, images_NCHW: Tensor, targets: Mapping[str, Tensor]) -> _Recording:
        images, own = images_NCHW.clone(), {name: values.clone() for name, values in targets.items()}

        def work() -> Tensor:
            return self._eager(images, own)

        with self._unchanged():
            torch.manual_seed(_OTHER_SEED)
            try:
                self._recorder.warm_up(work, WARM_UP)
                for parameter in self._eager.parameters:
                    parameter.grad = None  # so that the backward pass makes them in the recording's memory
                loss, replay = self._recorder.record(work)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise InputError(
                    "the steps of this student cannot be recorded as a CUDA graph",
                    code="cuda-graph-impossible",
                    where="--cuda-graphs",
                    found=str(_first(error)).partition("\n")[0],
                    hint=_HINT,
                ) from error
            gradients = [parameter.grad for parameter in self._eager.parameters]
        return _Recording(images_NCHW=images, targets=own, loss=loss, gradients=gradients, replay=replay)

    def _checked(self, recording: _Recording, images_NCHW: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """The first replay, compared with the same step done eagerly."""
        with self._unchanged():
            eager = float(self._eager(images_NCHW, targets)), self._norm()
        loss = self._replayed(recording, images_NCHW, targets)
        replayed = float(loss), self._norm()
        if not all(_is_close(a, b) for a, b in zip(replayed, eager, strict=True)):
            raise InputError(
                "a step replayed as a CUDA graph is not the step that was recorded",
                code="cuda-graph-differs",
                where="--cuda-graphs",
                expected=f"loss {eager[0]:.6g}, norm of the gradients {eager[1]:.6g}",
                found=f"{replayed[0]:.6g} and {replayed[1]:.6g}",
                hint=_HINT,
            )
        return loss

    def _norm(self) -> float:
        gradients = [p.grad for p in self._eager.parameters if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Behind it, the student's buffers and torch's random numbers are as before."""
        buffers = list(self._student.buffers())
        before = [buffer.clone() for buffer in buffers]
        device = buffers[0].device if buffers else next(self._student.parameters()).device
        cuda = [device] if device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=cuda):
                yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(buffers, before, strict=True):
                    buffer.copy_(value)


def _first(error: BaseException) -> BaseException:
    """What broke a recording; ending it raises another error on top."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error


def _is_close(a: float, b: float) -> bool:
    """Numbers that are not finite are for whoever reads the loss."""
    return math.isclose(a, b, rel_tol=TOLERANCE) or not (math.isfinite(a) or math.isfinite(b))
