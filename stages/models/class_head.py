"""Owns the formula from embeddings to logits in torch; `ClassVectors.logits` is the same in numpy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...storage_schemas.class_vectors import ClassVectors


class ClassHead(nn.Module):
    """Class vectors on a device: fp32 embeddings (N, D) to fp32 logits (N, C); see `ClassVectors.logits`."""

    vectors_CD: Tensor
    bias_C: Tensor | None

    def __init__(self, vectors: ClassVectors, logit_scale: float | None = None) -> None:
        super().__init__()
        self.logit_scale = vectors.logit_scale if logit_scale is None else logit_scale
        # Copies: on Ray these arrays lie in memory that others share, which torch warns of.
        self.register_buffer("vectors_CD", torch.tensor(vectors.vectors_CD))
        self.register_buffer("bias_C", None if vectors.bias_C is None else torch.tensor(vectors.bias_C))

    def forward(self, embedding_ND: Tensor) -> Tensor:
        with torch.autocast(embedding_ND.device.type, enabled=False):
            logits_NC = self.logit_scale * (embedding_ND.float() @ self.vectors_CD.T)
            return logits_NC if self.bias_C is None else logits_NC + self.bias_C
