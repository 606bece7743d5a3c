"""Owns the first look at a model: a few images that go through it before anything is planned."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...storage_schemas.errors import InputError
from .weights import brief


def few_images(count: int, size: int) -> Tensor:
    """uint8 images (count, 3, size, size), always the same: coarse colours, as photographs have, and no two alike."""
    generator = torch.Generator().manual_seed(0)
    coarse_NCHW = torch.rand(count, 3, 4, 4, generator=generator) * 255
    return nn.functional.interpolate(coarse_NCHW, size=(size, size), mode="bilinear").to(torch.uint8)


@torch.no_grad()
def try_images(module: nn.Module, size: int, where: str, *, count: int = 1) -> Tensor:
    """What a module makes of normalised images of that size, in eval mode: fp32, of a tuple the first part.

    Raises:
        InputError: it cannot take images of that size.
    """
    training = module.training
    try:
        features = tried(lambda: module.eval()(few_images(count, size) / 127.5 - 1), size, where)
    finally:
        module.train(training)
    features = features[0] if isinstance(features, tuple) else features
    return features.float()  # type: ignore[no-any-return]


@contextlib.contextmanager
def run_once(tower: nn.Module) -> Iterator[None]:
    """Inside, a tower computes once, and returns the same again whenever it is called: its input must be the same each time."""
    forward: Callable[..., Any] = tower.forward
    result: list[Any] = []

    def first_time(*inputs: Any, **options: Any) -> Any:
        if not result:
            result.append(forward(*inputs, **options))
        return result[0]

    tower.forward = first_time
    try:
        yield
    finally:
        del tower.forward  # the class's own comes back


def tried(forward: Callable[[], Any], size: int, where: str) -> Any:
    """What `forward` gives.

    Raises:
        InputError: it raises, as models do where patches do not fit, or nothing is left after the last stride.
    """
    try:
        with torch.no_grad():
            return forward()
    except InputError:
        raise
    except Exception as error:  # models raise AssertionError, RuntimeError, ValueError, IndexError, …
        raise InputError(
            "this model cannot take images of that size",
            code="image-size-impossible",
            where=where,
            found=f"{size} ({brief(error)})",
            hint="choose another size, or leave it out",
        ) from error
