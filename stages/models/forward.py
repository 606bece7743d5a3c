"""Owns the way of batches through a model: on a GPU copies and results run beside the work, and nothing waits in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...storage_schemas.errors import WorkerError, WorkerLost
from .compute import Compute

Tag = TypeVar("Tag")

#: Arrays (sample, …) of a batch, one behind the other.
Parts = Sequence[NDArray[Any]]

#: Waits for a batch's outputs.
_Finish = Callable[[], dict[str, NDArray[Any]]]

#: Batches on a GPU at the same time: one is computed, one waits for it, and one's results are taken.
_UNDER_WAY = 2


class Forward:
    """A model's outputs for batches, as arrays, in order.

    On CUDA a batch goes through page-locked memory, is copied in a stream of its own, and its outputs come back the same way:
    while one is computed the next is made ready, and the processor waits for none before two more are under way.

    Args:
        compute: where and how.
        run: outputs by name, for images (sample, *shape) on the device.
        option: what decides the size of a batch, as users call it; None where nothing does.
        per_sample: what a sample counts for in that option.
    """

    def __init__(
        self,
        compute: Compute,
        run: Callable[[Tensor], dict[str, Tensor]],
        option: str | None = "--batch-size",
        per_sample: int = 1,
    ) -> None:
        self._compute, self._run, self._option, self._per_sample = compute, run, option, per_sample
        self._device = torch.device(compute.device)
        self._copying = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def through(
        self,
        batches: Iterable[tuple[Tag, Parts]],
        timed: Callable[[str], AbstractContextManager[None]] = lambda kind: nullcontext(),
    ) -> Iterator[tuple[Tag, dict[str, NDArray[Any]]]]:
        """Each batch's tag with its outputs. Batches are taken as the device is ready for them.

        Args:
            timed: around what takes time here, which is of the kind `forward`.

        Raises:
            WorkerError: the device has no memory for such a batch (it says for which it has), or it failed.
        """
        under_way: deque[tuple[Tag, _Finish]] = deque()
        most = 0 if self._copying is None else _UNDER_WAY
        for tag, parts in batches:
            with timed("forward"):
                under_way.append((tag, self._start(parts)))
            del parts  # its memory is needed for others
            while len(under_way) > most:
                yield _finish(under_way, timed)
        while under_way:
            yield _finish(under_way, timed)

    def _start(self, parts: Parts) -> _Finish:
        """Begin with a batch; what is returned waits for its outputs."""
        try:
            with self._compute.inference():
                return self._start_here(parts) if self._copying is None else self._start_on_gpu(parts, self._copying)
        except torch.OutOfMemoryError:
            pass  # here the failed batch's memory is free again
        except RuntimeError as error:
            raise _lost(error) from error
        raise self._too_large(parts)

    def _start_here(self, parts: Parts) -> _Finish:
        array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        arrays = {name: values.numpy() for name, values in self._run(torch.from_numpy(array)).items()}
        return lambda: arrays

    def _start_on_gpu(self, parts: Parts, copying: torch.cuda.Stream) -> _Finish:
        # torch keeps page-locked memory, and gives it out again once the copies that use it are over.
        first = torch.from_numpy(parts[0])
        staging = torch.empty((sum(map(len, parts)), *first.shape[1:]), dtype=first.dtype, pin_memory=True)
        np.concatenate(parts, out=staging.numpy())
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(copying):
            images = staging.to(self._device, non_blocking=True)
        computing.wait_stream(copying)
        images.record_stream(computing)  # its memory is the other stream's: not before this one is done
        results = {
            name: torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            for name, values in self._run(images).items()
        }
        over = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waits without a core
        over.record(computing)

        def finish() -> dict[str, NDArray[Any]]:
            try:
                over.synchronize()
            except RuntimeError as error:
                raise _lost(error) from error
            return {name: values.numpy() for name, values in results.items()}

        return finish

    def _too_large(self, parts: Parts) -> WorkerError:
        count = sum(map(len, parts))
        fits = self._largest(torch.from_numpy(np.concatenate(parts)[: count // 2])) * self._per_sample
        option, found = self._option, count * self._per_sample
        return WorkerError(
            "the device has too little memory for such a batch",
            code="device-out-of-memory",
            where=f"{option or 'a batch of'} {found}",
            expected=f"at most {fits}" if fits else "a smaller model, or a device with more memory",
            found=found,
            hint=f"use {option} {fits}" if fits and option else "use --device cpu",
        )

    def _largest(self, images: Tensor) -> int:
        """For how many of these images the device has memory: all, the half of them, and so on; 0 for none."""
        count = len(images)
        while count:
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            try:
                with self._compute.inference():
                    self._run(images[:count].to(self._device))
                return count
            except torch.OutOfMemoryError:
                count //= 2
        return 0


def _finish(
    under_way: deque[tuple[Tag, _Finish]], timed: Callable[[str], AbstractContextManager[None]]
) -> tuple[Tag, dict[str, NDArray[Any]]]:
    tag, finish = under_way.popleft()
    with timed("forward"):
        return tag, finish()


def _lost(error: RuntimeError) -> Exception:
    """The error for a GPU that failed: nothing works on it any more in this process. Others stay as they are."""
    if "CUDA error" not in str(error) and type(error).__name__ != "AcceleratorError":
        return error
    return WorkerLost(
        "the GPU failed",
        code="gpu-lost",
        found=str(error).splitlines()[0],
        hint="see `nvidia-smi` and the system's log, then run the same command again: it goes on where it was",
    )
