"""Owns captions as targets: embeddings of each sample's captions, joined to the rows of a target store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.errors import MismatchError
from ...storage_schemas.plain_text import counted, typed
from ...storage_schemas.store_description import StoreDescription
from .caption_copies import CaptionCopies
from .caption_store import OpenCaptions
from .local_copies import LocalCache
from .sources import ShardRows

#: Targets: embeddings at length 1, fp32 (sample, caption, channel); and how many captions a sample has, int64 (sample,).
CAPTION, CAPTION_COUNT = "caption", "caption_count"


@dataclass(frozen=True, kw_only=True)
class Captions:
    """`caption` and `caption_count` of every sample.

    A sample with fewer captions than there are places has them over again, in their order: place p holds caption p mod count.
    One without any has zeros, and 0 as its count.
    """

    captions: OpenCaptions

    @staticmethod
    def of(place: str, about: StoreDescription) -> Captions:
        """
        Args:
            place: of the captions.
            about: the target store that they are joined to.

        Raises:
            InputError, IncompleteError, DamagedError: as `OpenCaptions.of`.
            MismatchError: they are of another corpus, or of another teacher than the store's.
        """
        found = OpenCaptions.of(Location.of(place))
        spec, teacher = found.spec, about.decided_by.teacher
        for field, own, other in (
            ("corpus_id", spec.corpus_id, about.corpus_id),
            ("num_rows", spec.num_rows, about.spec.num_rows),
            ("shard_size", spec.shard_size, about.spec.shard_size),
        ):
            if own != other:
                raise MismatchError(
                    "the captions are of another corpus",
                    code="captions-other-corpus",
                    where=f"{found.location}: field '{field}'",
                    expected=f"{other} (the store)",
                    found=f"{own} (the captions)",
                    hint="make captions of the shards that the store was made from, or bring the store up to date: "
                    "teachonce cache … --grow",
                )
        widths = [target.shape[-1] for target in about.spec.targets if target.name == "embedding"]
        for field, own_fact, cached in (
            ("weights", str(spec.teacher["weights_digest"]), teacher.weights),
            *(("embed_dim", str(spec.embed_dim), str(width)) for width in widths),
        ):
            if own_fact != cached:
                raise MismatchError(
                    "the captions are another teacher's than the cached targets",
                    code="captions-other-teacher",
                    where=f"{found.location}: field 'teacher.{field}'",
                    expected=f"{teacher.model} {cached} (the cached targets)",
                    found=f"{spec.teacher['model']} {own_fact} (the captions)",
                    hint=f"teachonce captions SHARDS --from TABLE --teacher {typed(teacher.model)} … --out OTHER",
                )
        return Captions(captions=found)

    @property
    def logit_scale(self) -> float:
        """The teacher's factor from cosines to logits."""
        return self.captions.spec.logit_scale

    @property
    def layouts(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        spec = self.captions.spec
        return {CAPTION: ("f4", (spec.captions, spec.embed_dim)), CAPTION_COUNT: ("i8", ())}

    @property
    def identity(self) -> Any:
        return {"captions": self.captions.fingerprint}

    @property
    def note(self) -> str:
        counts = self.captions.spec.counts
        without = (
            f"; {counted(counts.without, 'image')} without any, which the loss leaves out" if counts.without else ""
        )
        return (
            f"captions of {self.captions.location}: {counts.captions} of {counted(counts.samples, 'image')}, up to "
            f"{self.captions.spec.captions} of each{without}"
        )

    def open(self, rows: ShardRows, names: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        """Those of the shard's rows; the same in all views."""
        if not names:
            return {}
        embedding_NKD, count_N = self.captions.read(self._root, rows.shard)
        here = len(rows.valid_N)
        embedding_NKD, count_N = embedding_NKD[:here], count_N[:here]
        place_NK = np.arange(embedding_NKD.shape[1]) % np.maximum(count_N, 1)[:, None]
        found_NKD = np.take_along_axis(embedding_NKD, place_NK[:, :, None], axis=1)
        found_NKD[count_N == 0] = 0
        return {CAPTION: found_NKD, CAPTION_COUNT: count_N}

    def kept_in(self, cache: LocalCache, names: tuple[str, ...]) -> tuple[Captions, CaptionCopies | None]:
        if not names:
            return self, None
        copies = CaptionCopies.of(cache, self.captions)
        return replace(self, captions=copies.captions), copies

    @cached_property
    def _root(self) -> Any:
        return self.captions.open()

    def __getstate__(self) -> Mapping[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_root"}
