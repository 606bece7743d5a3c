"""Owns images as a kind of sample: RGB, decoded by Pillow, drawn at a box in pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from ...storage_schemas.view_params import Views
from ..corpora.images import decode, image_extensions, probe, shrink
from ..views.render import draw, fill_planes
from ..views.spec import ViewSpec
from ..views.versions import pixel_versions


class Images:
    """Images; see `SampleKind` for the members. A sample is a `PIL.Image.Image` in RGB."""

    name = "image"
    axes = ("channel", "height", "width")
    dtype = np.uint8

    def extensions(self) -> frozenset[str]:
        return image_extensions()

    def versions(self) -> Mapping[str, str]:
        return pixel_versions()

    def probe(self, data: bytes, limit: int) -> str:
        return probe(data, limit)

    def reducer(self) -> Mapping[str, str]:
        return {"pillow": PIL.__version__}

    def reduce(self, data: bytes, shorter_side: int, limit: int) -> bytes:
        return shrink(data, shorter_side, limit)

    def decode(self, data: bytes, limit: int) -> Image.Image:
        return decode(data, limit)

    def positions(self, sample: Image.Image) -> int:
        return sample.width * sample.height

    def size(self, sample: Image.Image) -> tuple[int, int]:
        return sample.height, sample.width

    def params(self, sample: Image.Image, key: str, spec: ViewSpec) -> Views:
        return spec.params(key, *sample.size)

    def shape(self, size: int) -> tuple[int, ...]:
        return (3, size, size)

    def draw(self, out: NDArray[np.uint8], sample: Image.Image, params: np.void, size: int, spec: ViewSpec) -> None:
        fill_planes(out, draw(sample, params, size, spec))


IMAGES = Images()
