"""Owns thumbnails: small pictures of the views that a store holds targets of, drawn as the teacher's input was drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...storage_schemas.view_params import Views
from ..corpora.images import BadImage, decode_small, one_image
from ..corpora.open_shards import OpenShards
from ..corpora.shards import ShardSet
from ..views.spec import CENTER, ViewSpec
from .images import IMAGES
from .kind import SampleKind, draw_views
from .registry import kind_named

#: Lossy, at a quality at which 96 pixels take about 2 kB.
_QUALITY = 60


class Thumbnails:
    """Draws views of the rows of shards; the last few shards are held open, and an image is decoded once for all its views.

    Args:
        shards: of the corpus that the store was made from.
        views: how the store's views are drawn.
    """

    def __init__(self, shards: ShardSet, views: ViewSpec) -> None:
        self._shards, self._views = shards, views
        self._open = OpenShards(shards)
        self._kind: SampleKind = kind_named(shards.corpus.sample_kind, where=shards.location)

    def __enter__(self) -> Thumbnails:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def no_pictures(self) -> str:
        """Why samples of this kind cannot be shown as pictures, or ''."""
        is_rgb = self._kind.axes == ("channel", "height", "width") and self._kind.shape(1)[0] == 3
        if is_rgb and np.dtype(self._kind.dtype) == np.uint8:
            return ""
        return f"samples of the kind '{self._kind.name}' are no pictures"

    def pixels(self, row: int, params: Views | Sequence[np.void], edge: int) -> NDArray[np.uint8]:
        """Some views of one row: uint8 (view, height, width, 3), square of `edge` pixels.

        Args:
            params: VIEW records as the store has them.

        Raises:
            BadImage: the row has no usable image, or it cannot be decoded here.
            DamagedError: the tar is not what its receipt vouches for.
        """
        data = self._read(row)
        with one_image(f"{self._shards.location}, row {row}"):
            sample = self._kind.decode(data, self._shards.corpus.max_pixels)
            views: NDArray[Any] = draw_views(self._kind, sample, params, edge, self._views)
        return np.ascontiguousarray(np.moveaxis(views, 1, -1))

    def whole(self, row: int, edge: int) -> NDArray[np.uint8]:
        """The whole image of one row, squashed: uint8 (edge, edge, 3); faster than `pixels`, and not as the teacher saw it.

        Raises what `pixels` does.
        """
        if self._kind.name != IMAGES.name:
            return np.asarray(whole_pictures(self._shards).pixels(row, [CENTER], edge)[0])
        data = self._read(row)
        with one_image(f"{self._shards.location}, row {row}"):
            return np.asarray(decode_small(data, edge, self._shards.corpus.max_pixels))

    def _read(self, row: int) -> bytes:
        if self.no_pictures:
            raise BadImage(self.no_pictures)
        reader = self._open.reader(row // self._shards.corpus.shard_size)
        if row in reader.invalid:
            raise BadImage(reader.invalid[row])
        return reader.read(row)

    def views(self, row: int, params: Views | Sequence[np.void], edge: int) -> list[bytes]:
        """Some views of one row, each a WebP file. Takes and raises what `pixels` does."""
        return [webp(view) for view in self.pixels(row, params, edge)]


def whole_pictures(shards: ShardSet) -> Thumbnails:
    """Draws whole images, squashed to squares: of the view `CENTER`."""
    return Thumbnails(shards, ViewSpec(kind="squash", interpolation="bilinear"))


def thumbnail(shards: ShardSet, row: int, params: np.void, views: ViewSpec, edge: int = 96) -> bytes:
    """One stored view of one row as a WebP file; `Thumbnails` is for many of them.

    Args:
        params: the VIEW record that the store has for it.
        views: how the store's views are drawn.
        edge: pixels of each side.

    Raises:
        BadImage: the row has no usable image, or it cannot be decoded here.
        DamagedError: the tar is not what its receipt vouches for.
    """
    with Thumbnails(shards, views) as thumbnails:
        return thumbnails.views(row, [params], edge)[0]


def webp(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """A WebP file of uint8 (height, width, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "WEBP", quality=_QUALITY, method=4)
    return file.getvalue()
