"""Owns the hypotheses about the pictures that a teacher saw: drawn, decoded or normalised in another way than the store says."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ...storage_schemas.samples import IMAGE
from ...storage_schemas.view_params import Views
from ..corpora.pillow_guard import formats, guard
from ..models.preprocess import Preprocess
from ..samples.kind import draw_views
from ..views.settings import FILTERS
from ..views.spec import ViewSpec
from .cause import AGAIN, Cause, Hypothesis
from .rerun import Rerun, Values
from .sampled_rows import SampledRows

#: Normalisations that are in use: mean and standard deviation of each channel on a scale of 0 to 1.
_NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP's": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "-1 to 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "0 to 1, as they are": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}

#: Sizes that models are used at.
_SIZES = (128, 160, 192, 224, 240, 256, 288, 299, 336, 384)


def picture_hypotheses(rerun: Rerun, sample: SampledRows, own: Preprocess) -> Iterator[Hypothesis]:
    """What may have been wrong with the pictures, the cheapest and most frequent first.

    Args:
        own: the model's own preprocessing, whatever the store records.
    """
    names = sample.names

    def drawn(cause: Cause, pixels: Callable[[], NDArray[Any] | None]) -> Hypothesis:
        def values() -> Values | None:
            seen = pixels()
            return None if seen is None else rerun.values(seen, names)

        return Hypothesis(cause=cause, values=values)

    if rerun.kind.name != IMAGE:
        return
    views = rerun.views
    yield drawn(
        Cause(
            code="teacher-saw-mirrored",
            what="the teacher saw the views mirrored",
            hint=AGAIN,
            expected="views as they are recorded",
            found="each the other way round",
        ),
        lambda: rerun.pixels(sample)[..., ::-1].copy(),
    )
    yield drawn(
        Cause(
            code="teacher-saw-other-channels",
            what="the teacher saw red and blue exchanged",
            hint=AGAIN,
            expected="RGB",
            found="BGR",
        ),
        lambda: rerun.pixels(sample)[:, ::-1].copy(),
    )
    yield from _normalised(rerun, sample, own)
    for name in FILTERS:
        if name != views.interpolation:
            yield drawn(
                _resampled(views.interpolation, name),
                partial(rerun.pixels, sample, views=replace(views, interpolation=name)),
            )
    for mode in ("bilinear", "bicubic"):
        yield drawn(
            _resampled(views.interpolation, f"{mode} without antialiasing"),
            partial(_aliased, rerun, sample, mode),
        )
    yield from (drawn(cause, pixels) for cause, pixels in _cropped(rerun, sample))
    yield from (drawn(cause, pixels) for cause, pixels in _decoded(rerun, sample))
    if views.has_colors:
        yield drawn(
            Cause(
                code="teacher-saw-other-colors",
                what="the teacher saw the views without their colours",
                hint=AGAIN,
                expected="jitter and grayscale as recorded",
                found="the image's own colours",
            ),
            lambda: rerun.pixels(
                sample, views=replace(views, jitter=(0.0, 0.0, 0.0, 0.0), jitter_probability=1.0, grayscale=0.0)
            ),
        )
    for size in _SIZES:
        if size != rerun.teacher.spec.preprocess.size:
            yield drawn(
                Cause(
                    code="teacher-saw-other-size",
                    what="the teacher saw views of another size",
                    hint=AGAIN,
                    expected=f"{rerun.teacher.spec.preprocess.size} pixels",
                    found=f"{size} pixels",
                ),
                partial(rerun.pixels, sample, size=size),
            )


def _resampled(expected: str, found: str) -> Cause:
    return Cause(
        code="teacher-saw-resampled-otherwise",
        what="the teacher saw views that were resampled in another way",
        hint=AGAIN,
        expected=expected,
        found=found,
    )


def _normalised(rerun: Rerun, sample: SampledRows, own: Preprocess) -> Iterator[Hypothesis]:
    recorded = rerun.teacher.spec.preprocess
    candidates = {"the model's own": (own.mean, own.std), **_NORMALISATIONS}
    candidates["x instead of x/255"] = (
        _scaled(recorded.mean, 1 / 255),
        _scaled(recorded.std, 1 / 255),
    )
    candidates["x/255 twice"] = (_scaled(recorded.mean, 255.0), _scaled(recorded.std, 255.0))
    for name, (mean, std) in candidates.items():
        if (mean, std) == (recorded.mean, recorded.std):
            continue

        def values(mean: Any = mean, std: Any = std) -> Values | None:
            other = rerun.prepared(replace(recorded, mean=mean, std=std))
            return None if other is None else other.values(other.pixels(sample), sample.names)

        yield Hypothesis(
            cause=Cause(
                code="teacher-saw-normalised-otherwise",
                what="the teacher saw pixels that were normalised in another way",
                hint=AGAIN,
                expected=f"mean {_text(recorded.mean)}, std {_text(recorded.std)}",
                found=name if name.startswith("x") else f"{name}: mean {_text(mean)}, std {_text(std)}",
            ),
            values=values,
        )


def _scaled(values: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    red, green, blue = (value * factor for value in values)
    return red, green, blue


def _text(values: Sequence[float]) -> str:
    return "/".join(f"{value:.4g}" for value in values)


Pixels = tuple[Cause, Callable[[], "NDArray[Any] | None"]]


def _cropped(rerun: Rerun, sample: SampledRows) -> Iterator[Pixels]:
    views = rerun.views

    def cause(found: str) -> Cause:
        return Cause(
            code="teacher-saw-cropped-otherwise",
            what="the teacher saw another part of the images",
            hint=AGAIN,
            expected="the stored boxes" if views.is_random else f"{views.kind} {views.crop_pct:g}",
            found=found,
        )

    def centred(kind: str, crop_pct: float) -> NDArray[Any]:
        spec = ViewSpec(kind=kind, interpolation=views.interpolation, crop_pct=crop_pct)
        size, one = rerun.teacher.spec.preprocess.size, sample.params_NV[0, :1]
        drawn = [draw_views(rerun.kind, image, one, size, spec)[0] for image in sample.images]
        return np.repeat(np.stack(drawn), len(sample.views), axis=0)

    for kind, crop_pct in (
        ("center", 1.0),
        ("center", 0.875),
        ("center", 0.95),
        ("center", 0.9),
        ("squash", 1.0),
        ("border", 1.0),
    ):
        if views.is_random or (kind, crop_pct) != (views.kind, views.crop_pct):
            yield cause(f"{kind} {crop_pct:g}"), partial(centred, kind, crop_pct)
    if not views.is_random:
        return

    def moved(change: Callable[[Views, int, int], None]) -> Callable[[], NDArray[Any]]:
        def pixels() -> NDArray[Any]:
            params_NV = sample.params_NV.copy()
            for params_V, image in zip(params_NV, sample.images, strict=True):
                change(params_V, *image.size)
            return rerun.pixels(sample, params_NV=params_NV)

        return pixels

    def exchanged(params_V: Views, width: int, height: int) -> None:
        top, left, h, w = (params_V[name].copy() for name in ("top", "left", "height", "width"))
        params_V["top"], params_V["left"] = np.minimum(left, height - 1), np.minimum(top, width - 1)
        params_V["height"], params_V["width"] = (
            np.minimum(w, height - params_V["top"]),
            np.minimum(h, width - params_V["left"]),
        )

    yield cause("boxes with rows and columns exchanged"), moved(exchanged)


def _decoded(rerun: Rerun, sample: SampledRows) -> Iterator[Pixels]:
    def cause(found: str) -> Cause:
        return Cause(
            code="teacher-saw-decoded-otherwise",
            what="the teacher saw images that another decoder had read",
            hint="cache into a new store; have every node decode with the same library",
            expected="as Pillow decodes them here",
            found=found,
        )

    yield (
        cause("colours of JPEG (chroma) repeated, not interpolated"),
        lambda: rerun.pixels(sample, images=[coarse_chroma(image) for image in sample.images]),
    )
    yield cause("torchvision's decoder"), lambda: _with_images(rerun, sample, by_torchvision)
    yield cause("the camera's orientation applied"), lambda: _with_images(rerun, sample, oriented)


def _with_images(
    rerun: Rerun, sample: SampledRows, decode: Callable[[bytes], Image.Image | None]
) -> NDArray[Any] | None:
    """Views of images that are decoded otherwise; None where none comes out otherwise, or one cannot be."""
    found = [decode(data) for data in sample.files]
    images = [image for image in found if image is not None]
    pairs = list(zip(images, sample.images, strict=False))
    if len(images) < len(found) or all(a.size == b.size and a.tobytes() == b.tobytes() for a, b in pairs):
        return None
    if rerun.views.is_random and any(a.size != b.size for a, b in pairs):
        params = [rerun.views.params(key, *image.size) for key, image in zip(sample.keys, images, strict=True)]
        return rerun.pixels(sample, images=images, params_NV=np.stack(params)[:, list(sample.views)])
    return rerun.pixels(sample, images=images)


def coarse_chroma(image: Image.Image) -> Image.Image:
    """As decoders show a JPEG that repeat each pixel of its halved colours, where Pillow's interpolates them."""
    luma, *chroma = image.convert("YCbCr").split()
    half = ((image.width + 1) // 2, (image.height + 1) // 2)
    repeated = [
        part.resize(half, Image.Resampling.BOX)
        .resize((2 * half[0], 2 * half[1]), Image.Resampling.NEAREST)
        .crop((0, 0, *image.size))
        for part in chroma
    ]
    return Image.merge("YCbCr", (luma, *repeated)).convert("RGB")


def by_torchvision(data: bytes) -> Image.Image | None:
    """As `torchvision.io` decodes a file; None where it cannot, or is not built with decoders."""
    with contextlib.suppress(Exception):
        from torchvision.io import ImageReadMode, decode_image

        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return Image.fromarray(decode_image(raw, ImageReadMode.RGB).permute(1, 2, 0).numpy())
    return None


def oriented(data: bytes) -> Image.Image | None:
    """As other programs show a photograph: turned as the camera was held."""
    with contextlib.suppress(Exception), guard(1 << 28):
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data), formats=formats())).convert("RGB")
    return None


def _aliased(rerun: Rerun, sample: SampledRows, mode: str) -> NDArray[Any] | None:
    """Random views as torch resizes tensors by default: every pixel from its nearest neighbours alone."""
    if not rerun.views.is_random:
        return None
    size, out = rerun.teacher.spec.preprocess.size, []
    for image, params_V in zip(sample.images, sample.params_NV, strict=True):
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()
        for params in params_V:
            top, left, height, width, flip = (int(params[name]) for name in ("top", "left", "height", "width", "flip"))
            box = pixels[None, :, top : top + height, left : left + width]
            drawn = torch.nn.functional.interpolate(box, (size, size), mode=mode, align_corners=False)[0]
            drawn = drawn.flip(-1) if flip else drawn
            out.append(drawn.round().clamp(0, 255).byte().numpy())
    return np.stack(out)
