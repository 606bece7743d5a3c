"""Owns image bytes: cheap checks that need no decoding, and the one decoder (Pillow) that both sides use.

Image files are hostile input: sizes are checked before pixels are allocated, and whatever goes wrong in one costs that one.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ...storage_schemas.errors import Unreachable
from .limits import MAX_BYTES, MAX_PIXELS
from .pillow_guard import LargestSize, TooManyPixels, formats, guard, image_extensions

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "BadImage",
    "decode",
    "decode_small",
    "image_extensions",
    "image_size",
    "one_image",
    "out_of_memory",
    "probe",
    "shrink",
]

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

#: What turns an image by the value of its tag `Orientation`; 1 and unknown values turn nothing.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: What Pillow raises for bad bytes, beside its own class: its parsers differ. A reason names any other exception's type.
_BAD_BYTES = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
)

#: What a decoder may take beside the file. An image that fails is called bad only where that much can be had.
_BYTES_PER_PIXEL, _BYTES_MORE = 16, 1 << 24

Result = TypeVar("Result")


class BadImage(Exception):
    """An image that cannot be used; the message is the reason that gets recorded."""


def probe(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """Check an image without decoding its pixels where that is possible. Returns the extension of its real format.

    A JPEG, PNG or GIF with its format's end mark is taken as whole; anything else is decoded to find out.

    Raises:
        BadImage: empty, not an image of `pillow_guard.FORMATS`, truncated, or more than `max_pixels` pixels.
    """

    def check(image: Image.Image) -> str:
        ending = _ENDINGS.get(image.format or "")
        if ending is None or ending not in data[-64:].rstrip(b"\0"):
            image.convert("RGB")
        return _EXTENSIONS.get(image.format or "", (image.format or "image").lower())

    return _with_image(data, max_pixels, check)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to an RGB image, converted as open_clip's and timm's own loaders do (`Image.convert`).

    Raises:
        BadImage: as in `probe`, or pixels that cannot be decoded.
    """
    return _with_image(data, max_pixels, _as_rgb)


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of what `decode` gives, without decoding pixels.

    Raises:
        BadImage: not an image.
    """
    return _with_image(data, max_pixels, lambda image: (image.height, image.width))


def decode_small(data: bytes, edge: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB image squashed to `edge` x `edge` pixels. Of a JPEG no more is decoded than that needs; no teacher sees such pixels.

    Raises:
        BadImage: as in `decode`.
    """

    def use(image: Image.Image) -> Image.Image:
        image.draft("RGB", (2 * edge, 2 * edge))
        return _as_rgb(image).resize((edge, edge), Image.Resampling.BILINEAR)

    return _with_image(data, max_pixels, use)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()
    return image  # `convert` would copy it


def shrink(data: bytes, shorter_side: int, max_pixels: int = MAX_PIXELS) -> bytes:
    """Re-encode as JPEG (quality 95) with the shorter side at most `shorter_side` pixels and the camera's orientation applied.

    Smaller images without an orientation stay as they are.

    Raises:
        BadImage: as in `decode`.
    """

    def reduce(image: Image.Image) -> bytes:
        rgb = image.convert("RGB")
        turn = _turn(image)
        if min(image.size) <= shorter_side and turn is None:
            return data
        oriented = rgb if turn is None else rgb.transpose(turn)
        factor = min(1.0, shorter_side / min(oriented.size))
        smallest = min(shorter_side, *oriented.size)
        size = (
            max(smallest, round(oriented.width * factor)),
            max(smallest, round(oriented.height * factor)),
        )
        buffer = io.BytesIO()
        oriented.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()

    return _with_image(data, max_pixels, reduce)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The camera's orientation, as far as it can be read: bad metadata does not make an image unusable."""
    with contextlib.suppress(Exception):  # its parsers raise whatever they meet
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return None


@contextlib.contextmanager
def one_image(where: object = None) -> Iterator[None]:
    """Any exception in the block makes this one image unusable, except for a lack of memory, which may pass.

    Args:
        where: names the image where memory is lacking.

    Raises:
        BadImage: for any exception.
        Unreachable: there is not enough memory at the moment.
    """
    try:
        yield
    except BadImage:
        raise
    except Unreachable as error:
        error.where = error.where or where
        raise
    except MemoryError as error:
        raise out_of_memory(where) from error
    except UnidentifiedImageError as error:
        raise BadImage("not an image that Pillow reads") from error
    except Exception as error:
        raise BadImage(_reason(error)) from error


def out_of_memory(where: object) -> Unreachable:
    """Too little memory to read or decode an image, which may have no fault."""
    return Unreachable(
        "out of memory",
        code="image-out-of-memory",
        where=where,
        found="not enough for this image",
        hint="free some memory, or use fewer workers or threads, then run the same command again",
    )


@contextlib.contextmanager
def _enough_memory(sizes: LargestSize) -> Iterator[None]:
    """Decoders that get no memory report broken data: check whether there was as much as they may take.

    Raises:
        MemoryError: there was not.
    """
    try:
        yield
    except UnidentifiedImageError:
        raise  # nothing was decoded
    except Exception:
        np.empty(_BYTES_PER_PIXEL * sizes.largest + _BYTES_MORE, np.uint8)  # it is not touched, so it costs nothing
        raise


def _with_image(data: bytes, max_pixels: int, use: Callable[[Image.Image], Result]) -> Result:
    """What `use` makes of the opened image."""
    if not data:
        raise BadImage("empty file")
    if len(data) > MAX_BYTES:
        raise BadImage(f"file too large: {len(data)} bytes, more than {MAX_BYTES}")
    with one_image():
        try:
            with guard(max_pixels) as sizes, _enough_memory(sizes):
                image = Image.open(io.BytesIO(data), formats=formats())
                if image.width * image.height > max_pixels:
                    raise TooManyPixels(*image.size)
                return use(image)
        except TooManyPixels as error:
            raise BadImage(f"too many pixels: {error}, more than {max_pixels}") from error


def _reason(error: Exception) -> str:
    kind = "" if isinstance(error, _BAD_BYTES) else type(error).__name__
    if kind and type(error).__module__ != "builtins":
        kind = f"{type(error).__module__}.{kind}"
    text = ": ".join(filter(None, (kind, " ".join(str(error).split())[:120]))) or type(error).__name__
    return "truncated image" if "truncated" in text.lower() else f"cannot be decoded: {text}"
