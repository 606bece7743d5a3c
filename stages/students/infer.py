"""Owns inference with a student bundle: the logits of batches, which must be finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..models.compute import Compute
from ..models.forward import Forward, Parts
from .bundle import LoadedStudent
from .prediction import check_finite

Tag = TypeVar("Tag")


def student_logits(
    student: LoadedStudent,
    batches: Iterable[tuple[Tag, Parts]],
    compute: Compute,
    *,
    option: str | None = "--batch-size",
) -> Iterator[tuple[Tag, NDArray[np.float32]]]:
    """The student's logits of each batch, fp32 (sample, class), in order, with the batch's tag.

    Args:
        batches: tags with arrays of the kind's views, one behind the other. They are taken ahead where a GPU computes.
        option: as in `Forward`.

    Raises:
        DamagedError: a logit is NaN or infinite.
        WorkerError: as in `Forward.through`.
    """
    forward = Forward(compute, lambda images_NCHW: {"embedding": student.student(images_NCHW).float()}, option)
    for tag, outputs in forward.through(batches):
        yield tag, check_finite(student.vectors.logits(outputs["embedding"]))
