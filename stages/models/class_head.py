"""Owns the formula from embeddings to logits in torch; `ClassVectors.logits` is the same in numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ...storage_schemas.class_vectors import ClassVectors


class Classifier(Protocol):
    """What gives logits of a student's embeddings."""

    @property
    def num_classes(self) -> int: ...
    @property
    def vectors_CD(self) -> Tensor: ...
    def __call__(self, embedding_ND: Tensor) -> Tensor: ...


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

    @property
    def num_classes(self) -> int:
        return len(self.vectors_CD)

    def forward(self, embedding_ND: Tensor) -> Tensor:
        with torch.autocast(embedding_ND.device.type, enabled=False):
            logits_NC = self.logit_scale * (embedding_ND.float() @ self.vectors_CD.T)
            return logits_NC if self.bias_C is None else logits_NC + self.bias_C


class TrainedHead(nn.Module):
    """A linear layer that trains with its student: fp32 embeddings (N, D) to fp32 logits (N, C)."""

    def __init__(self, width: int, num_classes: int) -> None:
        """Drawn from torch's global generator."""
        super().__init__()
        self.layer = nn.Linear(width, num_classes)

    @property
    def num_classes(self) -> int:
        return self.layer.out_features

    @property
    def vectors_CD(self) -> Tensor:
        return self.layer.weight

    def forward(self, embedding_ND: Tensor) -> Tensor:
        with torch.autocast(embedding_ND.device.type, enabled=False):
            logits_NC: Tensor = self.layer(embedding_ND.float())
            return logits_NC

    def vectors(self, of: ClassVectors) -> ClassVectors:
        """Its rows and bias as class vectors, with the names of others that have as many."""
        weight_CD, bias_C = (
            value.detach().float().cpu().numpy().copy() for value in (self.layer.weight, self.layer.bias)
        )
        return replace(of, vectors_CD=weight_CD, bias_C=bias_C, logit_scale=1.0, normalized=False)
