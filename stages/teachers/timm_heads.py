"""Owns what a timm model classifies with: linear heads, heads of any other kind, or none; and what its embedding is then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...storage_schemas.errors import InputError
from ..models.names import TIMM_PREFIX
from ..models.timm_models import classifiers
from .contract import not_linear

#: Classes of a head of its own kind, at most: their class vectors are a square of so many rows.
_MOST_CLASSES = 8192


class Heads(Protocol):
    """How a model's embedding and logits come from its pass.

    Attributes:
        width: channels of the embedding.
        num_classes: outputs; 0 where it has no classes.
        kind: for its identity and for people; '' for linear heads.
    """

    width: int
    num_classes: int
    kind: str

    def rows(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Class vectors (C, D) and bias (C,), or None, whose map of the embedding are the logits."""

    def read(self, forward: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Embedding (N, D) of a pass, fp32, and what the pass gave."""


def heads_of(model: Any, where: str) -> Heads | None:
    """Its linear heads, or that it has none; None where they are of another kind, see `AnyHead`."""
    layers = [model.get_submodule(name) for name in classifiers(model)]
    if all(isinstance(layer, nn.Identity) for layer in layers):
        return NoHead(model)
    if all(_is_linear(layer) for layer in layers):
        return LinearHeads(model, where)
    return None


class NoHead:
    """A model without a classifier: its embedding is what it gives. It has no classes."""

    num_classes, kind = 0, "features"

    def __init__(self, model: Any) -> None:
        self.width = int(getattr(model, "head_hidden_size", None) or model.num_features)

    def rows(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        raise ValueError("a model without classes")

    def read(self, forward: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        features_ND = forward()
        return features_ND.float(), features_ND


class AnyHead:
    """Heads of any kind: the logits themselves are the embedding, and the class vectors the unit matrix, which gives them back exactly."""

    kind = "own logits"

    def __init__(self, logits_NC: Tensor, where: str) -> None:
        """
        Raises:
            InputError: these are not one number a class and image, or too many of them.
        """
        if not isinstance(logits_NC, Tensor) or logits_NC.ndim != 2 or logits_NC.shape[1] > _MOST_CLASSES:
            raise InputError(
                "this model gives no logits that can be stored as they are",
                code="teacher-logits-unfit",
                where=f"{TIMM_PREFIX}{where}",
                expected=f"(image, class), of at most {_MOST_CLASSES} classes",
                found=str(tuple(logits_NC.shape)) if isinstance(logits_NC, Tensor) else type(logits_NC).__name__,
                hint="choose a model with a linear head",
            )
        self.width = self.num_classes = int(logits_NC.shape[1])

    def rows(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        return np.eye(self.num_classes, dtype=np.float32), None

    def read(self, forward: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        logits_NC = forward()
        return logits_NC.float(), logits_NC


class LinearHeads:
    """The layers that a model classifies with: linear ones, or 1x1 convolutions of one pixel.

    Attributes:
        layers: by name, in the model's own order.
        width: channels of what they read, together.
        num_classes: outputs of each of them.
    """

    kind = ""

    def __init__(self, model: Any, where: str) -> None:
        self._where = f"{TIMM_PREFIX}{where}"
        self.layers: dict[str, nn.Linear | nn.Conv2d] = {name: model.get_submodule(name) for name in classifiers(model)}
        self.width = sum(layer.weight.shape[1] for layer in self.layers.values())
        self.num_classes = next(iter(self.layers.values())).weight.shape[0]

    def rows(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Weight (C, D) and bias (C,), or None, whose map of the embedding is the mean of the heads' outputs."""
        heads, count = self.layers.values(), len(self.layers)
        weight_CD = torch.cat([head.weight.detach().float().flatten(1) for head in heads], dim=1) / count
        biases = [head.bias.detach().float() for head in heads if head.bias is not None]
        bias_C = torch.stack(biases).sum(0) / count if biases else None
        return np.ascontiguousarray(weight_CD.cpu().numpy()), None if bias_C is None else bias_C.cpu().numpy()

    def read(self, forward: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """What the heads read in a pass, joined (N, D) in fp32, and what the pass gave."""
        with self.listening() as read:
            given = forward()
        return self.joined(read), given

    def joined(self, read: Mapping[str, Tensor]) -> Tensor:
        """What the heads have read, one behind the other (N, D), fp32.

        Raises:
            InputError: a head reads more than one vector an image.
        """
        parts = [read[name].flatten(1).float() for name in self.layers]
        if sum(part.shape[1] for part in parts) != self.width:
            shapes = ", ".join(f"{name} {tuple(read[name].shape[1:])}" for name in self.layers)
            raise not_linear(self._where, "one vector an image for each head", shapes)
        return torch.cat(parts, dim=1)

    @contextlib.contextmanager
    def listening(self) -> Iterator[dict[str, Tensor]]:
        """Inside, what each head reads in the model's next pass, by name."""
        read: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _, inputs: read.__setitem__(name, inputs[0])

        handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in self.layers.items()]
        try:
            yield read
        finally:
            for handle in handles:
                handle.remove()


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
