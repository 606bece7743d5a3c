"""Owns inference with a student bundle: the logits of a batch, which must be finite."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ...storage_schemas.errors import DamagedError
from ..models.compute import Compute
from .bundle import LoadedStudent


def student_logits(student: LoadedStudent, pixels_NCHW: NDArray[np.uint8], compute: Compute) -> NDArray[np.float32]:
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
            "the student gives NaN or infinity",
            code="student-not-finite",
            where="logits",
            hint="try --precision fp32, or distill it again",
        )
    return logits_NC
