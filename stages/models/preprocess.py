"""Owns a model's preprocessing: size, crop, interpolation and normalisation, as open_clip and timm configure them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import msgspec
import torch

from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.json_file import Positive, as_schema
from ...storage_schemas.samples import IMAGE
from ..views.centering import Color
from ..views.settings import CENTERED, FILTERS, LARGEST_CROP, LEAST_CROP
from ..views.spec import ViewSpec

#: open_clip's `resize_mode`, as kinds of centre views.
_RESIZE_MODES = {"shortest": "center", "squash": "squash", "longest": "border"}

#: open_clip's `interpolation`; "random" is meant for training, and its test-time transform takes it for bicubic.
_OPEN_CLIP_FILTERS = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a model's images are prepared.

    Attributes:
        size: pixels of the square input.
        mean, std: per channel, on a scale of 0 to 1.
        interpolation: resampling filter, by Pillow's name.
        crop_pct: at test time sides are resized to size / crop_pct before the crop.
        crop_mode: which sides: `center` the shorter, `squash` both, `border` the longer, which pads the shorter.
        fill: of `border`: the padding's red, green and blue in whole levels; None for the mean colour.
        sample_kind: what the input is made of, as in `manifest.Corpus`.
    """

    size: Positive
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    crop_pct: Annotated[float, msgspec.Meta(ge=LEAST_CROP, le=LARGEST_CROP)] = 1.0
    crop_mode: str = "center"
    fill: Color | None = None
    sample_kind: str = IMAGE

    @staticmethod
    def of_open_clip(cfg: Mapping[str, Any], *, size: int, where: str) -> Preprocess:
        """What open_clip's `image_transform` does at test time with a model's `preprocess_cfg`.

        Args:
            cfg: mean and std (one number for all channels, or three), interpolation, resize_mode, fill_color.
            size: pixels of the square input.
            where: the model's name, for errors.

        Raises:
            InputError: an interpolation or a resize mode that open_clip does not have, or other than three channels.
        """
        mode = _choice(cfg.get("resize_mode") or "shortest", _RESIZE_MODES, "resize mode", where)
        filter_ = _choice(cfg.get("interpolation") or "bicubic", _OPEN_CLIP_FILTERS, "interpolation", where)
        return Preprocess(
            size=size,
            mean=_triple(cfg["mean"], "mean", where),
            std=_triple(cfg["std"], "std", where),
            interpolation=filter_,
            crop_mode=mode,
            fill=_triple(cfg.get("fill_color") or 0, "fill_color", where) if mode == "border" else None,
        )

    @staticmethod
    def of_timm(cfg: Mapping[str, Any], *, size: int | None, where: str) -> Preprocess:
        """What timm's `transforms_imagenet_eval` does with what its `resolve_data_config(model=…)` gives.

        Args:
            cfg: input_size, mean, std, interpolation, crop_pct, crop_mode.
            size: pixels of the square input; None for the model's own.
            where: the model's name, for errors.

        Raises:
            InputError: other than three channels, not square, or an interpolation or a crop mode that is not known.
                ("random" is an interpolation for training; timm's test-time transform does not take it either.)
        """
        channels, *sides = cfg["input_size"]
        if channels != 3:
            raise InputError(
                "only models with three input channels are supported",
                code="channels-not-three",
                where=where,
                found=channels,
            )
        return Preprocess(
            size=square_size(sides, where) if size is None else size,
            mean=_triple(cfg["mean"], "mean", where),
            std=_triple(cfg["std"], "std", where),
            interpolation=_choice(cfg["interpolation"], {name: name for name in FILTERS}, "interpolation", where),
            crop_pct=cfg["crop_pct"],
            crop_mode=_choice(cfg["crop_mode"], {name: name for name in CENTERED}, "crop mode", where),
        )

    def to_json(self) -> Json:
        """Fields that came later are left out at their old values: fingerprints and bundles stay as they are."""
        facts = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        always = (("crop_mode", "center"), ("fill", None), ("sample_kind", IMAGE))
        return {k: v for k, v in facts.items() if (k, v) not in always}

    @staticmethod
    def from_json(fields: Json, where: object = None) -> Preprocess:
        """What `to_json` gave.

        Raises:
            DamagedError: something else.
        """
        return as_schema(
            fields,
            Preprocess,
            what="not a preprocessing of images",
            code="preprocess-malformed",
            where=where,
            hint="copy the bundle again",
        )

    def override(self, **changes: Any) -> Preprocess:
        """A copy with the given fields replaced; None means: as it is. A given `crop_mode` pads with the mean colour."""
        given = {k: v for k, v in changes.items() if v is not None}
        return replace(self, **({"fill": None} if "crop_mode" in given else {}) | given)

    def to_text(self) -> str:
        """A short text for people."""
        mean, std = ("/".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return (
            f"{self.size}x{self.size} pixels, {self.interpolation}, crop {self.crop_mode} {self.crop_pct:.4g}, "
            f"mean {mean}, std {std}"
        )

    def center_view(self) -> ViewSpec:
        """The model's own test-time view.

        Raises:
            InputError: the mean is no colour to pad with.
        """
        spec = ViewSpec(kind=self.crop_mode, interpolation=self.interpolation, crop_pct=self.crop_pct)
        if self.crop_mode != "border":
            return spec
        red, green, blue = self.fill or (round(255 * mean) for mean in self.mean)
        return replace(spec, fill=(red, green, blue))


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
        raise InputError(
            "only square inputs are supported",
            code="input-not-square",
            where=where,
            found=f"{height}x{width}",
        )
    return int(height)


def _choice(name: Any, known: Mapping[str, str], what: str, where: str) -> str:
    if name not in known:
        raise InputError(
            f"unknown {what} in the model's configuration",
            code="model-config-value-unknown",
            where=where,
            expected=sorted(known),
            found=name,
            hint="correct it, or use another model",
        )
    return known[name]


def _triple(value: Any, what: str, where: str) -> tuple[Any, Any, Any]:
    """A value for each of three channels, from one for all of them or from three."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * 3
    if len(values) != 3:
        raise InputError(
            f"not a {what} of three channels",
            code="channels-not-three",
            where=where,
            expected=3,
            found=len(values),
        )
    return values
