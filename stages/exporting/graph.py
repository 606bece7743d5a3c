"""Owns the student as one graph from pixels to a result, without what only training or a GPU needs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.class_head import ClassHead
from ..models.hub import quiet_libraries
from ..models.probe import few_images
from .form import Export

#: The name of the graph's input; its output is named as the result.
INPUT = "images"


class Graph(nn.Module):
    """Images as `Export.pixels` says to fp32 logits (N, C), embeddings (N, D) or features (N, width)."""

    def __init__(self, export: Export) -> None:
        """
        Raises:
            InputError: logits of a student without class vectors.
        """
        super().__init__()
        student = export.student.student
        self.backbone, self.projector, self.normalize = student.backbone, student.projector, student.normalize
        self.class_head = ClassHead(export.student.vectors) if export.result == "logits" else None
        self._normalized, self._result, self._pixels = student.head.normalized, export.result, export.pixels

    def forward(self, images: Tensor) -> Tensor:
        if self._pixels == "uint8-nhwc":
            images = images.permute(0, 3, 1, 2)
        features = self.backbone(images if self._pixels == "float-nchw" else self.normalize(images))
        if isinstance(features, tuple):  # open_clip towers made for captioning return (pooled, tokens)
            features = features[0]
        if self._result == "features":
            return features  # type: ignore[no-any-return]
        embedding_ND: Tensor = self.projector(features)
        if self._normalized:
            embedding_ND = F.normalize(embedding_ND, dim=-1)
        return embedding_ND if self.class_head is None else self.class_head(embedding_ND)  # type: ignore[no-any-return]


def expected_output(export: Export, images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """What the student itself gives for images, as `predict` has it: fp32."""
    student = export.student
    images_NCHW = torch.stack([student.pixels(image) for image in images])
    with torch.inference_mode():
        if export.result == "features":
            features = student.student.backbone(student.student.normalize(images_NCHW))
            return (features[0] if isinstance(features, tuple) else features).numpy()  # type: ignore[no-any-return]
        embedding_ND = student.student(images_NCHW).numpy()
    return student.vectors.logits(embedding_ND) if export.result == "logits" else embedding_ND


def graph_input(export: Export, images: Sequence[Image.Image]) -> Tensor:
    """The images as the graph takes them."""
    pixels_NCHW = torch.stack([export.student.pixels(image) for image in images])
    if export.pixels == "float-nchw":
        return export.student.student.normalize(pixels_NCHW)  # type: ignore[no-any-return]
    return pixels_NCHW.permute(0, 2, 3, 1).contiguous() if export.pixels == "uint8-nhwc" else pixels_NCHW


def pictures(export: Export, count: int) -> list[Image.Image]:
    """Drawn pictures of the size of the student's input, always the same."""
    return [
        Image.fromarray(pixels_HWC.numpy())
        for pixels_HWC in few_images(count, export.student.preprocess.size).permute(0, 2, 3, 1)
    ]


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Inside, modules compute by operations that exporters know: torch's fused attention is left out. Libraries print nothing."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quiet_libraries(), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
