"""Owns views that are drawn anew in each epoch, for methods that need no stored target of what they show.

Each is a function of (seed, row, epoch) and the image alone: it needs no order and no state, so training goes on from any step with
the same pixels.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from ...storage_schemas.fingerprint import Json
from ...storage_schemas.view_drawing import RANDOM_CROP, ViewDrawing
from .centering import draw_placed
from .render import draw
from .settings import RandomViews
from .spec import INTERPOLATIONS, ViewSpec


class ViewAnew(Protocol):
    """How such a view is drawn. Small and picklable; equal ones draw the same."""

    def draw(self, image: Image.Image, size: int, *, seed: int, row: int, epoch: int) -> Image.Image:
        """A view of an RGB image, square of `size` pixels."""

    def to_json(self) -> Json:
        """What decides it, for fingerprints; versions of libraries that it needs, too."""


@dataclass(frozen=True, kw_only=True)
class WeakView:
    """The shorter side resized, then a square at any place of it: torchvision's `Resize` and `RandomCrop`."""

    interpolation: str = "bicubic"

    def draw(self, image: Image.Image, size: int, *, seed: int, row: int, epoch: int) -> Image.Image:
        across, down = ViewSpec(kind=RANDOM_CROP, seed=seed).numbers(f"weak/{row}", epoch, 2)
        return draw_placed(image, size, across=across, down=down, filter_=INTERPOLATIONS[self.interpolation])

    def to_json(self) -> Json:
        return {"kind": "weak", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class StrongView:
    """A random box, resized and perhaps mirrored, then timm's RandAugment (Cubuk et al., NeurIPS 2020).

    Attributes:
        scale: range of the box's share of the area.
        augment: timm's description, as in `rand-m9-mstd0.5-inc1`; '' for none.
        fill: red, green and blue of what comes into the view from outside it, in whole levels.
    """

    scale: tuple[float, float]
    augment: str
    fill: tuple[int, int, int]
    interpolation: str = "bicubic"
    flip: float = RandomViews.flip

    def draw(self, image: Image.Image, size: int, *, seed: int, row: int, epoch: int) -> Image.Image:
        spec = ViewSpec(kind=RANDOM_CROP, seed=seed, scale=self.scale, flip=self.flip, interpolation=self.interpolation)
        drawing: ViewDrawing = spec.drawing
        params = drawing.params([f"strong/{row}"], np.array([(image.height, image.width)]), [epoch])[0, 0]
        view = draw(image, params, size, spec)
        if not self.augment:
            return view
        augment = _augmentation(self.augment, size, self.fill, self.interpolation)
        with seeded(f"{seed}/augment/{row}/{epoch}"):
            found: Image.Image = augment(view)
        return found

    def to_json(self) -> Json:
        fields: dict[str, Json] = {"kind": "strong", **asdict(self), "scale": list(self.scale), "fill": list(self.fill)}
        if self.augment:
            import timm

            fields["timm"] = timm.__version__
        return fields


@functools.lru_cache(maxsize=8)
def _augmentation(described: str, size: int, fill: tuple[int, ...], interpolation: str) -> Callable[[Any], Any]:
    """timm's, with the settings that its `create_transform` gives it."""
    from timm.data.auto_augment import rand_augment_transform

    settings = {
        "translate_const": int(size * 0.45),
        "img_mean": fill,
        "interpolation": INTERPOLATIONS[interpolation],
    }
    made = rand_augment_transform(described, settings)
    for operation in made.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = functools.partial(_posterize, operation.aug_fn)
    return cast("Callable[[Any], Any]", made)


def _posterize(posterize: Callable[..., Any], image: Image.Image, bits: int, **more: Any) -> Any:
    """timm's levels go down to 0 bits, which gives a black image; Pillow 13 refuses them."""
    return Image.new(image.mode, image.size) if bits < 1 else posterize(image, bits, **more)


#: timm draws from the generators of the process, which are one for all threads.
_GENERATORS = threading.Lock()


@contextlib.contextmanager
def seeded(name: str) -> Iterator[None]:
    """Inside, the process's generators of Python and NumPy are at a state that `name` decides; behind it, where they were."""
    words = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), "<u4")
    with _GENERATORS:
        python, numpy = random.getstate(), np.random.get_state()
        random.seed(words.tobytes())
        np.random.seed(words)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
