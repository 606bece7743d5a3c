"""Owns the comparison of a checkpoint's frozen weights with those of the model that a user names as its origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from .layout import check_shape

#: Above this the weights are another model's. Averaging over 20 epochs in fp16, as PromptSRC's trainer does, moves them by 0.0004
#: of their size (measured on normal numbers); two trainings of one architecture differ by about 1.4.
MOST = 0.1


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far frozen weights are from where they started.

    Attributes:
        tensors: number of them.
        relative: length of all differences together, as a share of the length of all weights.
        largest, at: the largest difference of one number, and the key where it is.
    """

    tensors: int
    relative: float
    largest: float
    at: str

    def to_json(self) -> Json:
        return asdict(self)


@torch.no_grad()
def compare(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, option: str, model: str, where: object
) -> Drift:
    """Compare frozen weights with a model's.

    Args:
        weights: the checkpoint.
        own: the model's weights under the checkpoint's keys.
        option: of the command that names the model, for errors.
        model: the name that the user gave it.

    Raises:
        InputError: another shape, or weights that are further away than any averaging brings them.
    """
    squares = differences = 0.0
    largest, at = -1.0, ""
    for key, own_tensor in own.items():
        checkpoint_tensor = weights[key]
        check_shape(key, tuple(checkpoint_tensor.shape), tuple(own_tensor.shape), where=where)
        start = own_tensor.float()
        difference = (checkpoint_tensor.float() - start).abs()
        squares += float(start.double().square().sum())
        differences += float(difference.double().square().sum())
        most = float(difference.max())
        if most > largest or most != most:
            largest, at = most, key
    relative = (differences / squares) ** 0.5 if squares else 0.0
    if not relative <= MOST:
        raise InputError(
            "the checkpoint's frozen weights are another model's",
            code="checkpoint-other-model",
            where=f"{where}: {at}",
            expected=f"those of {option} {model}, but for rounding",
            found=f"a difference of {relative:.2g} of their size",
            hint=f"name the model that it was trained with: {option} and {option}-pretrained",
        )
    relative = float(f"{relative:.4g}")  # the last digits depend on the machine
    return Drift(tensors=len(own), relative=relative, largest=largest, at=at)
