"""Owns what Pillow may do with untrusted bytes: which formats it opens, how many pixels it allocates, what it warns of.

Pillow's own settings are global. They belong to the process and stay as they are; what is set here holds for
the calls in a `with guard(…)` block, in the thread that makes them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from PIL import Image

#: Formats that are opened, with Pillow's module for each. None of them runs a program, and each begins with bytes of its own:
#: PostScript starts Ghostscript, and some old formats take any bytes as theirs.
_PLUGINS = {
    "JPEG": "Jpeg",
    "MPO": "Mpo",
    "PNG": "Png",
    "WEBP": "WebP",
    "GIF": "Gif",
    "BMP": "Bmp",
    "TIFF": "Tiff",
    "PPM": "Ppm",
    "JPEG2000": "Jpeg2K",
    "AVIF": "Avif",
    "ICO": "Ico",
}
FORMATS = tuple(_PLUGINS)


class TooManyPixels(Image.DecompressionBombError):
    """An image, or one within its file, is larger than the limit; nothing of that size was allocated."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        super().__init__(f"{width}x{height}")


@functools.cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow opens, common ones first. (MPO is opened as the JPEG that it begins with.)"""
    for name in _PLUGINS.values():
        with contextlib.suppress(ImportError):  # AVIF came with Pillow 11.3
            importlib.import_module(f"PIL.{name}ImagePlugin")
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def image_extensions() -> frozenset[str]:
    """The file extensions of `FORMATS`, lower case, with the dot."""
    formats()
    # Not `registered_extensions`, which would import every module of Pillow's.
    return frozenset(ext.lower() for ext, name in Image.EXTENSION.items() if name in FORMATS)


class LargestSize:
    """Pixels of the largest image of a block; 0 before the first."""

    largest = 0


@contextlib.contextmanager
def guard(max_pixels: int) -> Iterator[LargestSize]:
    """No image of more than `max_pixels` is allocated in the block, also not inside icons and the like.

    The user's `Image.MAX_IMAGE_PIXELS` neither narrows nor widens that. Pillow's warnings are not shown.

    Raises:
        TooManyPixels: at the first such size.
    """
    outer = _limit.pixels, _limit.sizes
    _limit.pixels, _limit.sizes = max_pixels, LargestSize()
    try:
        with _silence:
            yield _limit.sizes
    finally:
        _limit.pixels, _limit.sizes = outer


class _Limit(threading.local):
    pixels: int | None = None
    sizes = LargestSize()


_limit = _Limit()

#: Pillow calls this function with every size that it finds in a file.
_pillows_check: Any = getattr(Image, "_decompression_bomb_check", None)


def _check_size(size: tuple[int, int], *args: Any, **options: Any) -> None:
    if _limit.pixels is None:
        _pillows_check(size, *args, **options)
        return
    pixels = max(1, size[0]) * max(1, size[1])
    if pixels > _limit.pixels:
        raise TooManyPixels(*size)
    _limit.sizes.largest = max(_limit.sizes.largest, pixels)


if _pillows_check is not None:
    setattr(Image, "_decompression_bomb_check", _check_size)  # noqa: B010  # a private name, which mypy refuses


class _Silence:
    """Ignores Pillow's warnings while any thread is in the block; then the filters are again what they were.

    `warnings.catch_warnings` alone is for one thread: two that overlap would leave their filters behind.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._before.__exit__(None, None, None)


_silence = _Silence()
os.register_at_fork(after_in_child=_silence.reset)  # its threads, and a lock that they held, stay behind
