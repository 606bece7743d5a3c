"""Owns drawn pictures that stand in for a corpus that is not there, for a teacher to be timed on."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...storage_schemas.samples import content_digest, sample_metadata
from ...storage_schemas.tar_file import member_bytes
from .corpus import PlannedCorpus
from .figures import Basis, Figure
from .shard_sizes import MEAN_PADDING

#: Of a photograph as JPEG: bits of the file for each pixel, and its width by its height.
BITS_PER_PIXEL, RATIO = 4.7, 4 / 3

#: A size where none is stated, and a path as long as many are.
_USUAL_BYTES, _SOME_PATH = 110_000, "folder/of_a_class/picture_0000001.jpg"


@dataclass(frozen=True)
class _Drawn:
    number: int
    width: int
    height: int
    label: str | None = None

    @property
    def path(self) -> str:
        return f"{self.number:06d}.jpg"

    def read(self) -> bytes:
        rng = np.random.default_rng(self.number)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((self.width, self.height), Image.Resampling.BICUBIC), np.float32)
        grain = rng.normal(0, 12, (self.height, self.width, 1))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()


def drawn_corpus(
    images: int, *, mean_bytes: float | None, shard_size: int, max_pixels: int, most: int
) -> PlannedCorpus:
    """So many images that nobody has seen.

    Args:
        mean_bytes: of a file; None where it is not stated, and then shards are not planned.
    """
    about = sample_metadata(path=_SOME_PATH, row=images, digest=content_digest(b""), label=None)
    pixels = (mean_bytes or _USUAL_BYTES) * 8 / BITS_PER_PIXEL
    height = max(1, round((pixels / RATIO) ** 0.5))
    return PlannedCorpus(
        name="planned",
        num_samples=Figure(value=images, basis=Basis.STATED),
        shard_size=shard_size,
        image_bytes=None if mean_bytes is None else Figure(value=mean_bytes, basis=Basis.STATED),
        member_bytes=None if mean_bytes is None else member_bytes(0) + mean_bytes + MEAN_PADDING,
        metadata_bytes=member_bytes(len(about)),
        picked=[_Drawn(number, max(1, round(height * RATIO)), height) for number in range(min(images, most))],
        max_pixels=max_pixels,
        is_drawn=True,
    )
