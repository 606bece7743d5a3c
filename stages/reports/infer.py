"""Owns inference with a student bundle: images decoded ahead in threads, logits in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ...storage_schemas.errors import DamagedError
from ..compute import Compute
from ..corpora.images import BadImage
from ..students import LoadedStudent

Item = TypeVar("Item")
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Ready(Generic[Item]):
    """An item with its pixels (view, 3, size, size), or with the reason why it has none."""

    item: Item
    pixels: Pixels | None
    reason: str = ""


def prepare(
    items: Iterable[Item], work: Callable[[Item], Pixels], threads: int, ahead: int
) -> Iterator[Ready[Item]]:
    """Items in order with what `work` makes of them; at most `ahead` are prepared in advance.

    `work` runs in threads; Pillow decodes and resizes without holding the interpreter.
    """
    waiting: deque[tuple[Item, Future[Pixels]]] = deque()

    def settle() -> Ready[Item]:
        item, future = waiting.popleft()
        try:
            return Ready(item=item, pixels=future.result())
        except BadImage as bad:
            return Ready(item=item, pixels=None, reason=str(bad))

    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > ahead:
                yield settle()
        while waiting:
            yield settle()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def student_logits(student: LoadedStudent, pixels_NCHW: Pixels, compute: Compute) -> NDArray[np.float32]:
    """The student's logits (sample, class), fp32.

    Raises:
        DamagedError: a logit is NaN or infinite.
    """
    with compute.inference():
        images_NCHW = torch.from_numpy(pixels_NCHW).to(compute.device)
        embedding_ND = student.student(images_NCHW).float().cpu().numpy()
    logits_NC = student.vectors.logits(embedding_ND)
    if not np.isfinite(logits_NC).all():
        raise DamagedError(
            "the student says NaN or infinity",
            where="logits",
            hint="try --precision fp32, or distill it again",
        )
    return logits_NC
