"""Owns a model's preprocessing: size, crop, interpolation and normalisation, from the model's own configuration."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ..views import ViewSpec


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a model wants its images.

    Attributes:
        size: pixels of the square input.
        mean, std: per channel, on a scale of 0 to 1.
        interpolation: resampling filter, by Pillow's name.
        crop_pct: at test time the shorter side is resized to size / crop_pct, then cropped.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0

    def to_json(self) -> Json:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_json(fields: Any) -> Preprocess:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return Preprocess(**values)

    def override(self, **changes: Any) -> Preprocess:
        """A copy with the given fields replaced; None means: as it is."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})

    def center_view(self) -> ViewSpec:
        """The model's own test-time view."""
        return ViewSpec(kind="center", interpolation=self.interpolation, crop_pct=self.crop_pct)


class Normalize(torch.nn.Module):
    """uint8 images (N, 3, H, W) on any device to normalised floats: (x / 255 - mean) / std. Holds no weights."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocess, name), dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """fp32, from uint8; the arithmetic is torchvision's ToTensor and Normalize."""
        return (images_NCHW.float().div_(255.0) - self.mean) / self.std


def square_size(image_size: Any, where: str) -> int:
    """The side of a square input size given as an int or a pair.

    Raises:
        InputError: not square.
    """
    if isinstance(image_size, int):
        return image_size
    height, width = image_size
    if height != width:
        raise InputError("only square inputs are supported", where=where, found=f"{height}x{width}")
    return int(height)
