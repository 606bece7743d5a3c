"""Owns the settings of views, and their choices. Imports no library, since options are made of them."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import seed_setting, setting
from ...storage_schemas.errors import InputError

#: Resampling filters, by Pillow's names.
FILTERS = ("bicubic", "bilinear", "lanczos", "nearest")

#: Kinds of centre views, by timm's names: the shorter side is resized to size / crop_pct; or both sides are, whatever the
#: aspect ratio; or the longer side is. Then the middle is cropped, and what is missing of the square is padded.
CENTERED = ("center", "squash", "border")

#: Range of a test-time view's `crop_pct`. The libraries' weights have 0.875 to 1.15.
LEAST_CROP, LARGEST_CROP = 0.1, 10.0


@dataclass(frozen=True, kw_only=True)
class RandomViews:
    """How random views are drawn; see `spec.ViewSpec`.

    `jitter` is brightness, contrast, saturation and hue; `interpolation` None takes the model's own filter.
    """

    seed: int = seed_setting(0, help="Seed of boxes and colours.")
    scale: tuple[float, float] = setting(
        (0.08, 1.0), above=0, most=1, help="Range of the crop's share of the image's area."
    )
    ratio: tuple[float, float] = setting(
        (3 / 4, 4 / 3), least=0.001, most=1000, default_text="3/4 to 4/3", help="Range of the crop's aspect ratio."
    )
    flip: float = setting(0.5, least=0, most=1, unit="P", help="Probability of a mirrored view.")
    jitter: tuple[float, float, float, float] = setting(
        (0.0, 0.0, 0.0, 0.0),
        least=0,
        unit="B,C,S,H",
        help="Strengths of torchvision's ColorJitter: brightness, contrast, saturation, and hue up to 0.5.",
    )
    jitter_probability: float = setting(
        1.0, above=0, most=1, unit="P", help="Probability of a jittered view, with --view-jitter."
    )
    grayscale: float = setting(0.0, least=0, most=1, unit="P", help="Probability of a grayscale view.")
    interpolation: str | None = setting(None, choices=FILTERS, default_text="the teacher's", help="Resampling filter.")


@dataclass(frozen=True, kw_only=True)
class ViewCount:
    """How many views there are: a number of random views, or `center` for the model's own test-time view."""

    views: str = setting("center", unit="K|center", help="Number of random views K, or `center`.")

    @property
    def random(self) -> int | None:
        """How many; None for centre views.

        Raises:
            InputError: `views` is neither a number nor `center`.
        """
        if self.views == "center":
            return None
        if not (self.views.isdecimal() and int(self.views) > 0):
            raise InputError(
                "impossible number of views",
                code="setting-impossible",
                where="--views",
                expected="a number or `center`",
                found=self.views,
            )
        return int(self.views)
