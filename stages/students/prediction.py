"""Owns predictions: the classes that a student sees in images however these are given, and how probable each is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ...storage_schemas.errors import DamagedError, InputError
from ..corpora.images import MAX_PIXELS, BadImage, decode, one_image
from ..inputs.typed_images import TypedImages
from ..models.softmax import probabilities

#: An image as `predict` takes it: Pillow's, uint8 (height, width, 3), a file's bytes, or its path or URL.
AnyImage = Image.Image | NDArray[np.uint8] | bytes | str | os.PathLike[str]

#: Images in one forward pass.
BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What a student sees in one image; `print` shows the most probable class.

    Attributes:
        names: of the classes, the same for all images of a student.
        probabilities_C: fp32 (class,), which add up to 1; NaN where the image cannot be used.
        reason: why it cannot be used; '' where it can.
    """

    names: tuple[str, ...]
    probabilities_C: NDArray[np.float32]
    reason: str = ""

    @property
    def name(self) -> str:
        """The most probable class; '' where the image cannot be used."""
        return self.top(1)[0][0] if not self.reason else ""

    @property
    def probability(self) -> float:
        """Of the most probable class; NaN where the image cannot be used."""
        return self.top(1)[0][1] if not self.reason else float("nan")

    def top(self, count: int = 5) -> tuple[tuple[str, float], ...]:
        """(class name, probability) of the most probable classes, falling; equals in the order of the classes."""
        if self.reason:
            return ()
        order = np.argsort(-self.probabilities_C, kind="stable")[:count].tolist()
        return tuple((self.names[i], float(self.probabilities_C[i])) for i in order)

    def __repr__(self) -> str:
        return f"Prediction({self.name!r}, {self.probability:.4f})" if not self.reason else f"Prediction({self.reason})"


def is_one_image(images: object) -> bool:
    """Whether that is a single image, as opposed to several."""
    return isinstance(images, (Image.Image, bytes, str, os.PathLike)) or (
        isinstance(images, np.ndarray) and images.ndim != 4
    )


def predict_images(
    images: Iterable[AnyImage],
    *,
    names: tuple[str, ...],
    pixels: Callable[[Image.Image], torch.Tensor],
    logits: Callable[[torch.Tensor], NDArray[np.float32]],
    batch_size: int,
    temperature: float,
    keep_unusable: bool,
) -> Iterator[Prediction]:
    """Predictions in the order of the images; at most a batch of them is in memory.

    Args:
        names: of the classes.
        pixels: what the student sees of an image.
        logits: fp32 (sample, class) of a batch of such pixels.
        batch_size, temperature, keep_unusable: as in `LoadedStudent.predict`.

    Raises:
        InputError: an image cannot be used, and such are not kept.
        DamagedError: a logit is NaN or infinite.
    """
    numbers, left = count(), iter(images)
    while batch := list(islice(left, batch_size)):
        seen, reasons = [], []
        for image in batch:
            number = next(numbers)
            try:
                with one_image(f"image {number}"):
                    seen.append(pixels(as_image(image)))
                reasons.append("")
            except BadImage as bad:
                if not keep_unusable:
                    raise InputError(
                        "an image cannot be used",
                        code="image-unusable",
                        where=str(image) if isinstance(image, (str, os.PathLike)) else f"image {number}",
                        found=str(bad),
                        hint="leave it out, or ask for predictions with `keep_unusable=True`",
                    ) from bad
                reasons.append(str(bad))
        rows = iter(probabilities(check_finite(logits(torch.stack(seen))), temperature) if seen else ())
        nothing_C = np.full(len(names), np.nan, np.float32)
        for reason in reasons:
            yield Prediction(names=names, probabilities_C=nothing_C if reason else next(rows), reason=reason)


def as_image(image: AnyImage) -> Image.Image:
    """The image in memory.

    Raises:
        BadImage: it cannot be read or decoded, or is no image.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (str, os.PathLike)):
        return decode(TypedImages().read(os.fspath(image)), MAX_PIXELS)
    if isinstance(image, bytes):
        return decode(image, MAX_PIXELS)
    if not isinstance(image, np.ndarray):
        raise BadImage(f"{type(image).__name__}, not an image: give Pillow's, bytes, a path, or a uint8 array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        shape = ", ".join(map(str, image.shape))
        raise BadImage(f"an array of {image.dtype} ({shape}), not uint8 (height, width, 3)")
    return Image.fromarray(image)


def check_finite(logits_NC: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same logits.

    Raises:
        DamagedError: one of them is NaN or infinite.
    """
    if not np.isfinite(logits_NC).all():
        raise DamagedError(
            "the student gives NaN or infinity",
            code="student-not-finite",
            where="logits",
            hint="try --precision fp32, or distill it again",
        )
    return logits_NC


def many(images: AnyImage | Iterable[AnyImage]) -> Iterable[AnyImage]:
    """The images that were given, one or several."""
    one: Sequence[Any] = (images,)
    return one if is_one_image(images) else images  # type: ignore[return-value]
