"""Owns the settings of `teachonce cache`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting
from ...storage_schemas.encodings.spelling import KNOWN, usage
from ...storage_schemas.params_form import STORED, VIEW_PARAMS
from ..models.settings import COMPUTING

ENCODING = "Encoding"


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """What is stored, and how.

    Attributes:
        targets: see `teachers.offers.choose_offers`.
        encoding, max_kl, max_bytes, fit_views: see `encodings.request.EncodingRequest`.
        chunk_views: decides low bits, as `batch_size` does.
        view_params: one of `storage_schemas.params_form.VIEW_PARAMS`; None for `stored`, or of a store that grows for its own.
        batch_size: its composition decides low bits. None: 64 on the CPU, 256 on CUDA.
    """

    targets: str = setting(
        "auto",
        unit="NAMES",
        known=("auto", "both", "embedding", "logits", "tokens"),
        help="What to store, with commas: embedding, logits, tokens, features.LAYER. auto: logits where there are class vectors "
        "and no more classes than channels, else the embedding; both: embedding,logits.",
    )
    encoding: str | None = setting(
        None,
        unit="NAME",
        default_text="fp16",
        group=ENCODING,
        help=f"How targets are stored: {', '.join(map(usage, KNOWN))}; or one for each target, as in "
        "logits=pca:0.85,embedding=int8. See docs/encodings.md.",
    )
    max_kl: float | None = setting(
        None,
        above=0,
        unit="NATS",
        group=ENCODING,
        help="Take the smallest encoding that costs no more divergence (mean, T = 1).",
    )
    max_bytes: float | None = setting(
        None,
        above=0,
        unit="BYTES",
        group=ENCODING,
        help="Take the most exact encoding that takes no more bytes a view.",
    )
    fit_views: int = setting(
        4096,
        least=1,
        unit="VIEWS",
        group=ENCODING,
        help="Views of the first shards that encodings are fitted to and chosen by. The teacher runs on these once more.",
    )
    view_params: str | None = setting(
        None,
        choices=VIEW_PARAMS,
        default_text="stored",
        group=ENCODING,
        help="What becomes of the boxes and colours of views: `derived` keeps the sizes of the images, of which readers draw them again.",
    )
    chunk_views: int | None = setting(
        None,
        least=1,
        unit="VIEWS",
        default_text="all",
        group=COMPUTING,
        help="Most views in a chunk, and of an image in a forward pass. A store grows by whole chunks of views, so one that is made at once "
        "equals a grown one if this is the number that the other began with.",
    )
    batch_size: int | None = setting(
        None,
        least=1,
        unit="VIEWS",
        default_text="64 on the CPU, 256 on CUDA",
        group=COMPUTING,
        help="Views in a forward pass. Decides low bits, so it is fingerprinted.",
    )

    @property
    def view_params_of_new(self) -> str:
        """What becomes of parameters in a new store."""
        return self.view_params or STORED

    def batch_on(self, device: str) -> int:
        """Views in a forward pass on this device."""
        return self.batch_size or (64 if device == "cpu" else 256)
