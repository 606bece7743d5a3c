"""Owns running a store's teacher again: on pixels that are drawn as the store says, or in any other way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.view_params import Views
from ..models.compute import Compute
from ..models.forward import Forward
from ..models.preprocess import Preprocess
from ..samples.kind import SampleKind, draw_views
from ..teachers.base import Teacher
from ..teachers.offers import Answers
from ..teachers.placing import place
from ..teachers.preparing import prepared
from ..views.spec import ViewSpec
from .sampled_rows import SampledRows

#: Views in a forward pass.
_BATCH = 16

Values = dict[str, NDArray[np.float32]]

#: How one view is drawn: image, stored parameters, size, spec.
Draw = Callable[[Any, np.void, int, ViewSpec], NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """A teacher, prepared as its store records, beside the store's class vectors."""

    teacher: Teacher
    vectors: ClassVectors | None
    views: ViewSpec
    kind: SampleKind
    compute: Compute

    def pixels(
        self,
        sample: SampledRows,
        *,
        params_NV: Views | None = None,
        views: ViewSpec | None = None,
        images: Sequence[Any] | None = None,
        size: int | None = None,
    ) -> NDArray[Any]:
        """The views of sampled rows, (row · view, *shape); as stored, or with one thing changed."""
        params_NV = sample.params_NV if params_NV is None else params_NV
        size = size or self.teacher.spec.preprocess.size
        drawn = [
            draw_views(self.kind, image, params_V, size, views or self.views)
            for image, params_V in zip(images or sample.images, params_NV, strict=True)
        ]
        return np.concatenate(drawn)

    def values(self, pixels: NDArray[Any], names: Sequence[str], compute: Compute | None = None) -> Values:
        """Targets by name, fp32 (view, …)."""
        compute = compute or self.compute
        answers = Answers.of(place(self.teacher, compute), self.vectors, torch.device(compute.device))
        forward = Forward(compute, lambda images: answers.outputs(images, names), option=None)
        batches = ((None, (pixels[start : start + _BATCH],)) for start in range(0, len(pixels), _BATCH))
        parts = [outputs for _, outputs in forward.through(batches)]
        return {name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in names}

    def prepared(self, preprocess: Preprocess) -> Rerun | None:
        """The same with another normalisation; None where the teacher's family cannot."""
        other = prepared(self.teacher, preprocess)
        return None if other is None else replace(self, teacher=other)
