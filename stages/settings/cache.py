"""Owns the settings of `teachonce cache`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting
from ...storage_schemas.encodings import ENCODINGS
from ...storage_schemas.errors import InputError
from ..models.settings import COMPUTING


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """What is stored, and how.

    Attributes:
        views: a number of random views, or `center` for the teacher's own test-time view.
        targets: see `teachers.offers.choose_offers`.
        batch_size: its composition decides low bits. None: 64 on the CPU, 256 on CUDA.
    """

    views: str = setting("center", unit="K|center", help="Number of random views K, or `center`.")
    targets: str = setting(
        "auto", unit="NAMES",
        help="What to store, with commas: embedding, logits, tokens, features.LAYER. auto: logits where there are class vectors "
        "and no more classes than channels, else the embedding; both: embedding,logits.",
    )  # fmt: skip
    encoding: str = setting(
        "fp16", choices=tuple(ENCODINGS), help="How targets are stored. fp16 keeps logits relative to their maximum."
    )  # fmt: skip
    batch_size: int | None = setting(
        None, least=1, unit="VIEWS", default_text="64 on the CPU, 256 on CUDA", group=COMPUTING,
        help="Views in a forward pass. Decides low bits, so it is fingerprinted.",
    )  # fmt: skip

    @property
    def random_views(self) -> int | None:
        """How many; None for centre views.

        Raises:
            InputError: `views` is neither a number nor `center`.
        """
        if self.views == "center":
            return None
        if not (self.views.isdecimal() and int(self.views) > 0):
            raise InputError(
                "impossible number of views",
                where="--views",
                expected="a number or `center`",
                found=self.views,
            )
        return int(self.views)

    def batch_on(self, device: str) -> int:
        """Views in a forward pass on this device."""
        return self.batch_size or (64 if device == "cpu" else 256)
