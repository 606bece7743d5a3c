"""Owns the spec of views: how boxes and colours are drawn from (seed, key, view)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from PIL import Image

from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.json_file import as_schema
from ...storage_schemas.philox import BLOCK, Philox
from ...storage_schemas.view_drawing import RANDOM_CROP, ViewDrawing
from ...storage_schemas.view_params import VIEW, Views
from .centering import Color
from .settings import CENTERED, FILTERS, LARGEST_CROP, LEAST_CROP, RandomViews

INTERPOLATIONS = {name: Image.Resampling[name.upper()] for name in FILTERS}

#: Parameters for a centre view, which needs none: its box follows from the image.
CENTER: np.void = np.zeros(1, VIEW)[0]


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """How the views of a sample are drawn. Stored with the targets: only a stored view has a valid target.

    Attributes:
        kind: `random_resized_crop`, or the model's own test-time view: `center` resizes the shorter side and crops,
            `squash` resizes both sides whatever their ratio and crops, `border` resizes the longer side and pads.
        count: number of views K.
        chosen: of random views, which of those that the seed gives: K numbers in the store's order; None for the first K.
        seed: of the random boxes and colours.
        scale, ratio: range of a box's share of the area and of its aspect ratio.
        flip: probability of a mirrored view.
        interpolation: resampling filter, by Pillow's name.
        crop_pct: of a test-time view: sides are resized to size / crop_pct before the crop (1 for open_clip, 0.875
            for many timm models).
        fill: of `border`: the padding's red, green and blue, in whole levels of 0 to 255.
        jitter: strengths of torchvision's `ColorJitter`: factors of brightness, contrast and saturation lie between
            max(0, 1 - strength) and 1 + strength, the hue's shift between -strength and strength (at most 0.5 turns).
        jitter_probability: of a view to be jittered at all.
        grayscale: probability of a view to be gray.
    """

    kind: str = "center"
    count: int = 1
    chosen: tuple[int, ...] | None = None
    seed: int = RandomViews.seed
    scale: tuple[float, float] = RandomViews.scale
    ratio: tuple[float, float] = RandomViews.ratio
    flip: float = RandomViews.flip
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    fill: Color = (0, 0, 0)
    jitter: tuple[float, float, float, float] = RandomViews.jitter
    jitter_probability: float = RandomViews.jitter_probability
    grayscale: float = RandomViews.grayscale

    @staticmethod
    def random(count: int, drawn: RandomViews, interpolation: str) -> ViewSpec:
        """Random views by a user's settings; with their own filter, or else this one.

        Raises:
            InputError: an impossible setting.
        """
        fields = asdict(drawn) | {"interpolation": drawn.interpolation or interpolation}
        return ViewSpec(kind=RANDOM_CROP, count=count, **fields)

    def __post_init__(self) -> None:
        if self.kind not in (*CENTERED, RANDOM_CROP):
            raise InputError(
                "unknown kind of views",
                code="view-kind-unknown",
                where=self.kind,
                hint="--views K or --views center",
            )
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                "unknown interpolation",
                code="interpolation-unknown",
                where=self.interpolation,
                expected=sorted(INTERPOLATIONS),
                found=self.interpolation,
            )
        if self.count < 1 or (not self.is_random and self.count != 1):
            raise InputError("impossible number of views", code="setting-impossible", where="--views", found=self.count)
        self._check_chosen()
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise InputError(
                "impossible range of view scale or ratio",
                code="view-scale-impossible",
                found=f"{self.scale}, {self.ratio}",
            )
        if not LEAST_CROP <= self.crop_pct <= LARGEST_CROP:
            raise InputError(
                "impossible share of a crop",
                code="setting-impossible",
                where="crop_pct",
                expected=f"{LEAST_CROP} to {LARGEST_CROP}",
                found=self.crop_pct,
            )
        self._check_fill()
        self._check_colors()

    def _check_chosen(self) -> None:
        if self.chosen is None:
            return
        fits = len(self.chosen) == self.count == len(set(self.chosen)) and min(self.chosen) >= 0
        if not self.is_random or not fits:
            raise InputError(
                "impossible numbers of views",
                code="setting-impossible",
                where="--views",
                expected=f"{self.count} different numbers of random views",
                found=self.chosen,
            )

    def _check_fill(self) -> None:
        if self.kind != "border" and any(self.fill):
            raise InputError(
                "only border views are padded with a colour",
                code="fill-color-useless",
                where=self.kind,
                found=self.fill,
            )
        if len(self.fill) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in self.fill):
            raise InputError(
                "impossible colour of the padding",
                code="fill-color-impossible",
                expected="three whole numbers from 0 to 255",
                found=self.fill,
            )

    def _check_colors(self) -> None:
        *factors, hue = self.jitter
        if not all(0 <= strength < math.inf for strength in factors) or not 0 <= hue <= 0.5:
            raise InputError(
                "impossible strengths of the colour jitter",
                code="setting-impossible",
                where="--view-jitter",
                expected="brightness, contrast, saturation of 0 or more, and a hue from 0 to 0.5",
                found=", ".join(f"{strength:g}" for strength in self.jitter),
            )
        for option, probability in (("flip", self.flip), ("grayscale", self.grayscale)):
            if not 0 <= probability <= 1:
                raise InputError(
                    "not a probability",
                    code="setting-impossible",
                    where=f"--view-{option}",
                    expected="0 to 1",
                    found=probability,
                )
        if not 0 < self.jitter_probability <= 1:
            raise InputError(
                "impossible probability of the colour jitter",
                code="setting-impossible",
                where="--view-jitter-probability",
                expected="more than 0, at most 1",
                found=self.jitter_probability,
                hint="leave out the jitter to have none",
            )
        if self.jitter_probability < 1 and not any(self.jitter):
            raise InputError(
                "a probability of a colour jitter that there is not",
                code="option-needs-another",
                where="--view-jitter-probability",
                found=self.jitter_probability,
                hint="add --view-jitter, such as 0.4,0.4,0.2,0.1",
            )
        if not self.is_random and self.has_colors:
            raise InputError(
                "centre views keep their colours",
                code="option-for-random-views",
                where="--view-jitter, --view-grayscale",
                hint="use --views K for random views",
            )

    @property
    def is_random(self) -> bool:
        """Whether boxes are drawn at random; else there is one view, which follows from the image."""
        return self.kind == RANDOM_CROP

    @functools.cached_property
    def has_colors(self) -> bool:
        """Whether views have other colours than their images, and the store has arrays for them."""
        return any(self.jitter) or self.grayscale > 0

    @property
    def drawn(self) -> tuple[int, ...]:
        """The number by which each view is drawn, in the order of the views."""
        return tuple(range(self.count)) if self.chosen is None else self.chosen

    def first(self, count: int) -> ViewSpec:
        """The first views that the seed gives, whichever of them these are; a test-time view is the only one."""
        return replace(self, count=count, chosen=None) if self.is_random else self

    def some(self, places: Sequence[int]) -> ViewSpec:
        """Some of these views, by their places among them."""
        drawn = tuple(self.drawn[place] for place in places)
        first = drawn == tuple(range(len(drawn)))
        return replace(self, count=len(drawn), chosen=None if first else drawn)

    def to_json(self) -> Json:
        """Only the facts that decide pixels: a centre view has no seed, scale, ratio or flip; colour where it is used."""
        facts: dict[str, Json] = {"kind": self.kind, "count": self.count, "interpolation": self.interpolation}
        if not self.is_random:
            facts |= {"crop_pct": self.crop_pct}
            return facts | ({"fill": list(self.fill)} if self.kind == "border" else {})
        facts |= {"seed": self.seed, "scale": list(self.scale), "ratio": list(self.ratio), "flip": self.flip}
        if self.chosen is not None:
            facts |= {"chosen": list(self.chosen)}
        if any(self.jitter):
            facts |= {"jitter": list(self.jitter), "jitter_probability": self.jitter_probability}
        return facts | ({"grayscale": self.grayscale} if self.grayscale else {})

    @staticmethod
    def from_json(fields: Json, where: object = None) -> ViewSpec:
        """What `to_json` gave.

        Raises:
            DamagedError: something else.
        """
        return as_schema(
            fields,
            ViewSpec,
            what="not a description of views",
            code="views-malformed",
            where=where,
            hint="restore the store from a copy",
        )

    @functools.cached_property
    def drawing(self) -> ViewDrawing:
        """How the parameters of views are drawn."""
        return ViewDrawing.from_json(self.to_json(), where=None)

    def params(self, key: str, width: int, height: int) -> Views:
        """Parameters of one sample's views, VIEW (view,); boxes in pixels of the image. See `ViewDrawing.params`."""
        params: Views = self.drawing.params([key], np.array([(height, width)]), range(self.count))[0]
        return params

    def numbers(self, key: str, view: int, count: int) -> list[float]:
        """The first random numbers of one view, in [0, 1): a function of (seed, key, view) alone."""
        drawn = Philox([self.drawing.name(key, view)], -(-count // BLOCK))
        here = np.zeros(1, np.int64)
        blocks = [drawn.block(number, here)[0].tolist() for number in range(-(-count // BLOCK))]
        return list(itertools.chain.from_iterable(blocks))[:count]
