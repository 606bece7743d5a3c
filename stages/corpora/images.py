"""Owns image bytes: cheap checks that need no decoding, and the one decoder (Pillow) that both sides use.

Image files are hostile input: sizes are checked before pixels are allocated.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable

from PIL import Image, ImageOps, UnidentifiedImageError

#: Default of `--max-pixels`: larger images are recorded as unusable. Pillow warns of bombs from 89 million on.
MAX_PIXELS = 89_478_485

#: Larger files are not read into memory.
MAX_BYTES = 1 << 30

# The size checks below replace Pillow's own, whose limit is a global.
Image.MAX_IMAGE_PIXELS = None

_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b"\x3b"}
_EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
}

#: What Pillow raises for bad bytes, beside its own class: its parsers differ. struct.error is a ValueError's cousin.
_BAD_BYTES = (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError,
              OverflowError, ZeroDivisionError, AttributeError, RuntimeError, NotImplementedError)  # fmt: skip


class BadImage(Exception):
    """An image that cannot be used; the message is the reason that gets recorded."""


@functools.cache
def image_extensions() -> frozenset[str]:
    """Every file extension that Pillow reads as an image, lower case, with the dot."""
    Image.preinit()  # first, so that each open tries the common formats before the rare ones
    Image.init()
    return frozenset(ext for ext, name in Image.registered_extensions().items() if name in Image.OPEN) - {
        ".pdf", ".mpg", ".mpeg", ".hdf", ".h5", ".grib", ".bufr",
    }  # fmt: skip


def probe(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """Check an image without decoding its pixels where that is possible. Returns the extension of its real format.

    A JPEG, PNG or GIF that ends as its format says is taken as whole; anything else is decoded to find out.

    Raises:
        BadImage: empty, not an image, truncated, or more than `max_pixels` pixels.
    """
    image = _open(data, max_pixels)
    ending = _ENDINGS.get(image.format or "")
    if ending is None or ending not in data[-64:].rstrip(b"\0"):
        _load(image)
    return _EXTENSIONS.get(image.format or "", (image.format or "image").lower())


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to an RGB image, converted as open_clip's and timm's own loaders do (`Image.convert`).

    Raises:
        BadImage: as in `probe`, or pixels that cannot be decoded.
    """
    image = _open(data, max_pixels)
    return _load(image)


def shrink(data: bytes, shorter_side: int, max_pixels: int = MAX_PIXELS) -> bytes:
    """Re-encode as JPEG (quality 95) with the shorter side at most `shorter_side` pixels; smaller ones stay as they are.

    The camera's orientation is applied, since its tag does not survive.

    Raises:
        BadImage: as in `decode`.
    """
    image = _open(data, max_pixels)
    if min(image.size) <= shorter_side:
        _load(image)
        return data
    oriented = _guard(lambda: ImageOps.exif_transpose(image).convert("RGB"))
    factor = shorter_side / min(oriented.size)
    size = (
        max(shorter_side, round(oriented.width * factor)),
        max(shorter_side, round(oriented.height * factor)),
    )
    buffer = io.BytesIO()
    oriented.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise BadImage("empty file")
    if len(data) > MAX_BYTES:
        raise BadImage(f"file too large: {len(data)} bytes, more than {MAX_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise BadImage("not an image that Pillow reads") from error
    except _BAD_BYTES as error:
        raise _bad(error) from error
    if image.width * image.height > max_pixels:
        raise BadImage(f"too many pixels: {image.width}x{image.height}, more than {max_pixels}")
    return image


def _load(image: Image.Image) -> Image.Image:
    return _guard(lambda: image.convert("RGB"))


def _guard(work: Callable[[], Image.Image]) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()
    except _BAD_BYTES as error:
        raise _bad(error) from error


def _bad(error: Exception) -> BadImage:
    text = " ".join(str(error).split())[:120] or type(error).__name__
    return BadImage("truncated image" if "truncated" in text.lower() else f"cannot be decoded: {text}")
