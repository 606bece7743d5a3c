"""Owns calls of a function teacher: batches, the rate, tries with growing waits, and what they cost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import DamagedError, WorkerError
from ...storage_schemas.plain_text import brief
from ..models.black_box import BlackBox, TryAgain


@runtime_checkable
class CountsCalls(Protocol):
    """A teacher whose work is counted."""

    def take_calls(self) -> Mapping[str, float]:
        """What was counted since it was asked last: `calls` and `images` of all tries, `failed` ones, and `cost CURRENCY`."""


class Caller:
    """Calls a black box; from one thread at a time.

    Args:
        box: what is called.
        shapes: of one image's targets, by name.
        where: names it in errors.
        sleep, clock: of the machine.
    """

    def __init__(
        self,
        box: BlackBox,
        shapes: Mapping[str, tuple[int, ...]],
        where: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._box, self._shapes, self._where = box, shapes, where
        self._sleep, self._clock = sleep, clock
        self._next = -np.inf
        self._counted: dict[str, float] = {}
        self._lock = threading.Lock()
        self._cost = f"cost {box.currency}".rstrip()

    def __call__(self, images_NHWC: NDArray[np.uint8], names: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
        """Targets by name, of all images; at most `batch_size` of them in a call.

        Raises:
            WorkerError: a call failed as often as it may be tried.
            DamagedError: an answer that is no mapping, of another shape, no numbers, or not finite.
        """
        step, parts = self._box.batch_size, []
        for first in range(0, len(images_NHWC), step):
            images = images_NHWC[first : first + step]
            parts.append(self._checked(self._answer(images), len(images), names))
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def take(self) -> dict[str, float]:
        """See `CountsCalls`."""
        with self._lock:
            counted, self._counted = self._counted, {}
        return counted

    def _answer(self, images: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        box = self._box
        again: tuple[type[Exception], ...] = (TryAgain, *box.retry_on)
        for tried in range(1, box.tries + 1):
            self._wait_for_turn()
            cost = box.price_per_call + box.price_per_image * len(images)
            self._count(calls=1, images=len(images), **({self._cost: cost} if cost else {}))
            try:
                return box.answer(images.copy())  # what the function makes of them is not what the next try is given
            except BaseException as error:
                self._count(failed=1)
                if not isinstance(error, again):
                    raise
                if tried == box.tries:
                    raise WorkerError(
                        "a function teacher gave no answer",
                        code="function-teacher-silent",
                        where=self._where,
                        expected=f"an answer in {box.tries} tries",
                        found=f"{type(error).__name__}: {brief(error)}",
                        hint="look after the service, then run the same command again: it goes on where it was",
                    ) from error
                self._sleep(self._pause(tried, error))
        raise AssertionError("a box is tried at least once")

    def _pause(self, tried: int, error: Exception) -> float:
        """Doubles from try to try; a random share is left out, so that many workers do not come back together."""
        wait = min(self._box.longest_wait, self._box.first_wait * 2.0 ** (tried - 1)) * random.uniform(0.5, 1)
        return max(wait, (error.seconds or 0.0) if isinstance(error, TryAgain) else 0.0)

    def _wait_for_turn(self) -> None:
        rate = self._box.calls_per_second
        if rate is None:
            return
        now = self._clock()
        if now < self._next:
            self._sleep(self._next - now)
        self._next = max(now, self._next) + 1 / rate

    def _count(self, **more: float) -> None:
        with self._lock:
            for name, value in more.items():
                self._counted[name] = self._counted.get(name, 0) + value

    def _checked(
        self, answer: Mapping[str, NDArray[Any]], count: int, names: tuple[str, ...]
    ) -> dict[str, NDArray[np.float32]]:
        found: dict[str, NDArray[np.float32]] = {}
        for name in names:
            shape = (count, *self._shapes[name])
            try:
                found[name] = _numbers(answer, name, shape)
            except (TypeError, ValueError) as error:
                raise DamagedError(
                    "a function teacher's answer is not what it declares",
                    code="function-teacher-answer",
                    where=f"{self._where}, {name}",
                    expected=f"finite numbers of shape {shape}",
                    found=brief(error),
                    hint="mend the function; rows that are written are not changed",
                ) from error
        return found


def _numbers(answer: object, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """What an answer has by this name.

    Raises:
        TypeError, ValueError: no finite numbers of this shape; the message says what is there instead.
    """
    if not isinstance(answer, Mapping):
        raise TypeError(f"{type(answer).__name__} in place of arrays by name")
    if name not in answer:
        raise ValueError("none")
    values = np.asarray(answer[name], np.float32)
    if values.shape != shape:
        raise ValueError(f"shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinity")
    return values
