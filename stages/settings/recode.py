"""Owns the settings of `teachonce recode`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting
from ...storage_schemas.encodings import ENCODINGS

SAMPLES = "Which samples"


@dataclass(frozen=True, kw_only=True)
class RecodeSettings:
    """What is taken of a store, and how it is stored.

    Attributes:
        encoding: None for the store's own.
        targets: names, with commas; None for those of the store.
        views: see `recoding.view_choice.places_of`.
        samples: a file of keys or paths.
        label: classes of the corpus, any of them.
        confidence: least and largest probability of the teacher's first class.
        shards: folder of the shards, for paths and labels; None for the one that the store recorded.
    """

    encoding: str | None = setting(
        None, choices=tuple(ENCODINGS), default_text="the store's", help="How targets are stored."
    )
    targets: str | None = setting(
        None,
        unit="NAMES",
        known=("embedding", "logits", "tokens"),
        default_text="all",
        help="Targets to keep, with commas. logits are formed from embeddings where the store has none.",
    )
    views: str | None = setting(
        None,
        unit="VIEWS",
        default_text="all",
        help="Views to keep: K for the first K, 0,2 for these by their numbers, `2,` for one alone.",
    )
    classes_from: str | None = setting(
        None,
        unit="PATH",
        help="Form logits for the classes of this store, where `teachonce vectors` wrote class vectors of the same teacher.",
    )
    samples: str | None = setting(
        None, unit="PATH", group=SAMPLES, help="Keep these: a file with a key or a path a line."
    )
    label: tuple[str, ...] = setting(
        (), unit="CLASS", group=SAMPLES, help="Keep images that the corpus labels so. May be given several times."
    )
    confidence: tuple[float, float] | None = setting(
        None,
        least=0,
        most=1,
        unit="LEAST,LARGEST",
        group=SAMPLES,
        help="Keep samples whose first class has such a probability for the teacher (mean over the views kept).",
    )
    only_shards: tuple[int, ...] = setting(
        (),
        least=0,
        unit="NUMBERS",
        group=SAMPLES,
        help="Keep the samples of these shards, by their numbers, with commas.",
    )
    shards: str | None = setting(
        None,
        unit="FOLDER",
        group=SAMPLES,
        default_text="as `cache` recorded",
        help="The store's shards, for paths and labels.",
    )
