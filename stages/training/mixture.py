"""Owns the teacher's logits of a batch: as they are stored, formed from embeddings, or mixed of several teachers'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.fingerprint import Json
from ..models.class_head import ClassHead
from .mixes import MIXES


@dataclass(frozen=True, kw_only=True)
class LogitsOf:
    """Where one teacher's logits come from.

    Attributes:
        target: its logits, or its embeddings.
        vectors: class vectors that make logits of the embeddings; None where they are logits.
        weight: of this teacher; more than 0.
    """

    target: str
    vectors: ClassVectors | None = None
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Teachers whose logits are mixed; one alone is as it is.

    Attributes:
        mix: one of `MIXES`.
    """

    teachers: tuple[LogitsOf, ...]
    mix: str = MIXES[0]

    @property
    def is_stored(self) -> bool:
        """Whether the store's own logits are all there is to it."""
        return [(one.target, one.vectors) for one in self.teachers] == [("logits", None)]

    @property
    def weights(self) -> list[float]:
        """Of the teachers; their sum is 1."""
        total = sum(one.weight for one in self.teachers)
        return [one.weight / total for one in self.teachers]

    def to_json(self) -> dict[str, Json]:
        """For fingerprints: empty for one teacher."""
        if len(self.teachers) < 2:
            return {}
        vectors = [None if one.vectors is None else one.vectors.digest for one in self.teachers]
        mixed = [
            {"target": one.target, "weight": weight, **({} if digest is None else {"class_vectors": digest})}
            for one, weight, digest in zip(self.teachers, self.weights, vectors, strict=True)
        ]
        return {"mixture": {"mix": self.mix, "teachers": mixed}}


class TargetLogits(nn.Module):
    """Targets of a batch to fp32 logits (N, C), on its device.

    Args:
        temperature: of the softmaxes that the loss takes. Probabilities are mixed at this temperature T: the result is T times
            the logarithm of their mean, so that its softmax at T is that mean.
    """

    log_weights_T: Tensor

    def __init__(self, mixture: Mixture, temperature: float = 1.0) -> None:
        super().__init__()
        self._mixture, self._temperature = mixture, temperature
        self.register_buffer("log_weights_T", torch.tensor(mixture.weights).log())
        self.heads = nn.ModuleList(
            nn.Identity() if one.vectors is None else ClassHead(one.vectors) for one in mixture.teachers
        )

    def forward(self, targets: Mapping[str, Tensor]) -> Tensor:
        each: list[Tensor] = [
            head(targets[one.target].float()) for head, one in zip(self.heads, self._mixture.teachers, strict=True)
        ]
        if len(each) == 1:
            return each[0]
        logits_TNC, log_weights = torch.stack(each), self.log_weights_T[:, None, None]
        if self._mixture.mix == "logits":
            return (log_weights.exp() * logits_TNC).sum(dim=0)
        t = self._temperature
        return t * torch.logsumexp(torch.log_softmax(logits_TNC / t, dim=2) + log_weights, dim=0)
