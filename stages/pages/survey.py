"""Owns what a page shows of a store beyond its facts: what is gathered while it is read, and what is searched for afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import DamagedError
from ...storage_schemas.store_description import StoreSpec
from ..corpora.images import BadImage
from ..measures.confusions import Confusions
from ..measures.duplicates import Pair, equal_files, near_pictures, near_vectors, ranked, unconnected
from ..measures.patch_features import EDGE
from ..measures.picture_likeness import EDGE as GREY_EDGE
from ..measures.picture_likeness import grey
from ..measures.rankings import SCORES, FeatureSample, RandomSample, Ranking
from ..measures.sample_block import SampleFacts
from ..measures.stale_rows import LEAST_VIEWS, mismatches
from ..measures.store_pass import Watcher, read_facts
from ..measures.stored import Stored
from ..measures.tallies import Tallies
from ..measures.wrong_labels import contradicted_labels
from ..samples.thumbnails import Thumbnails
from ..views.spec import ViewSpec

#: Samples in each gallery, to be found by name, on the map, whose vectors are compared, whose whole pictures are compared with each
#: other, and whose views are compared with their targets.
GALLERY, FINDABLE, ON_MAP, COMPARED, PICTURED, MATCHED = 24, 4_000, 1_200, 20_000, 10_000, 2_000

#: Views of a row whose pictures are compared with their targets; pairs by vectors and by pictures that may be near duplicates.
_MATCHED_VIEWS, _BY_VECTORS, _BY_PICTURES = 4, 1600, 400


@dataclass(frozen=True)
class Group:
    """Samples that are shown together: one, or two that are alike.

    Attributes:
        rows: of the samples.
        note: what was found, for people.
    """

    rows: tuple[int, ...]
    note: str = ""


class Survey:
    """Watches one reading of a store (`inspect_store(…, watchers=survey.watchers)`), then answers.

    Args:
        stored: with rows.

    Attributes:
        problems: tars that cannot be read, as lines for people.
    """

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        spec: StoreSpec = stored.rows
        self.total = sum(spec.rows(shard).stop - spec.rows(shard).start for shard in stored.shards_done())
        self.has_logits = not stored.no_logits
        self.target = _vectors_of(spec)
        self._known = RandomSample(self.total, COMPARED, has_logits=self.has_logits)
        self.watchers: list[Watcher] = [self._known]
        self.rankings: dict[str, Ranking] = {}
        self.confusions: Confusions | None = None
        self.tallies: Tallies | None = None
        if self.has_logits:
            self.tallies = Tallies(spec.num_shards, spec.num_views, stored.num_classes)
            self.confusions = Confusions(stored.num_classes)
            names = ["unsure", "confidence"] + (["disagreement"] if spec.num_views > 1 else [])
            self.rankings = {name: Ranking(SCORES[name], GALLERY) for name in names}
            self.watchers += [self.confusions, self.tallies, *self.rankings.values()]
        if self.target:
            self._features = FeatureSample(self.total, COMPARED, self.target)
            views = min(spec.num_views, _MATCHED_VIEWS)
            self._by_view = FeatureSample(self.total, MATCHED, self.target, views)
            self.watchers += [self._features, self._by_view]
        self._taken: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None
        self.problems: dict[str, None] = {}  # in their order, each once

    @property
    def vectors(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(rows, vectors of length 1 (sample, channel)) of those that are compared with each other; none of some stores."""
        if self._taken is None:
            rows, vectors = (
                self._features.take() if self.target else (np.zeros(0, np.int64), np.zeros((0, 1, 1), np.float32))
            )
            self._taken = rows, vectors[:, 0]
        return self._taken

    def wrong_labels(self) -> list[Group] | None:
        """Labels that other images contradict, the likeliest first; None where there are no labels to compare."""
        rows, vectors = self.vectors
        labels = self.labels(rows)
        if len({label for label in labels if label is not None}) < 2:
            return None
        scores, others = contradicted_labels(vectors, labels)
        order = np.argsort(-scores, kind="stable")[:GALLERY].tolist()
        return [
            Group((int(rows[i]),), f"labelled {labels[i]}; nearer to {others[i]} by {scores[i]:.2f}")
            for i in order
            if scores[i] > 0
        ]

    def duplicates(self) -> list[Group]:
        """Images that are there more than once: equal files among all rows, then those whose pictures are most alike."""
        stored = self._stored
        if stored.shards is None:
            return []
        digests = ((row, digest) for shard in stored.shards_done() for row, digest in stored.digests(shard))
        pairs = [*equal_files(digests), *self.near_duplicates()]
        return [Group((pair.first, pair.second), _likeness(pair)) for pair in unconnected(pairs)[:GALLERY]]

    def near_duplicates(self) -> list[Pair]:
        """Pairs of rows in the order of how alike their pictures are; candidates come from vectors and from whole pictures."""
        assert self._stored.shards is not None
        with Thumbnails(self._stored.shards, ViewSpec.from_json(self._stored.description.views)) as thumbnails:
            if thumbnails.no_pictures:
                return []
            pairs = near_vectors(*self.vectors, _BY_VECTORS)
            greys = self._greys(thumbnails, [facts.row for facts in self._known.smaller(self.total, PICTURED)])
            pairs += near_pictures(greys, _BY_PICTURES)
            greys |= self._greys(thumbnails, {row for p in pairs for row in (p.first, p.second)} - set(greys))
        return ranked(pairs, greys)

    def _greys(self, thumbnails: Thumbnails, rows: Iterable[int]) -> dict[int, NDArray[np.uint8]]:
        """Small grey pictures of whole images by row; without those that cannot be drawn."""

        def draw(row: int) -> NDArray[np.uint8] | None:
            try:
                return grey(thumbnails.whole(row, GREY_EDGE))
            except BadImage:
                return None
            except DamagedError as error:
                self.problems.setdefault(str(error))
                return None

        ordered = sorted(rows)
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
            drawn = threads.map(draw, ordered)
            return {row: found for row, found in zip(ordered, drawn, strict=True) if found is not None}

    def stale_rows(self) -> list[Group] | None:
        """Rows whose targets go least with their pictures; None where that cannot be told."""
        stored = self._stored
        if stored.shards is None or not self.target:
            return None
        rows, vectors = self._by_view.take()
        spec = ViewSpec.from_json(stored.description.views, stored.location)
        kept, pixels = [], []
        with Thumbnails(stored.shards, spec) as thumbnails:
            if thumbnails.no_pictures:
                return None
            for index, row in enumerate(rows.tolist()):
                try:
                    pixels.append(thumbnails.pixels(row, stored.view_params(row)[: vectors.shape[1]], EDGE))
                    kept.append(index)
                except BadImage:
                    continue
                except DamagedError as error:
                    self.problems.setdefault(str(error))
        if len(kept) * vectors.shape[1] < LEAST_VIEWS:
            return None
        scores = mismatches(np.stack(pixels), vectors[kept])
        order = np.argsort(-scores, kind="stable")[:GALLERY].tolist()
        middle, spread = np.median(scores), max(float(np.median(np.abs(scores - np.median(scores)))), 1e-9)
        return [
            Group((int(rows[kept[i]]),), f"{(scores[i] - middle) / spread:.1f} deviations from the usual")
            for i in order
        ]

    def labels(self, rows: NDArray[np.int64]) -> list[str | None]:
        """Labels of rows in their order; none where the shards are not at hand."""
        found: list[str | None] = []
        size = self._stored.rows.shard_size
        for shard in np.unique(rows // size).tolist():
            labels = self._stored.labels(shard)
            offsets = (rows[rows // size == shard] - self._stored.rows.rows(shard).start).tolist()
            found += [None if labels is None else labels[i] for i in offsets]
        return found

    def findable(self) -> list[SampleFacts]:
        """A random sample of rows, in their order."""
        return self._known.smaller(self.total, FINDABLE)

    def on_map(self) -> tuple[list[int], NDArray[np.float32]]:
        """(rows, their vectors) of a smaller random sample."""
        rows, vectors = self.vectors
        drawn = {facts.row for facts in self._known.smaller(self.total, ON_MAP)}
        kept = [i for i, row in enumerate(rows.tolist()) if row in drawn]
        return rows[kept].tolist(), vectors[kept]

    def facts(self, rows: Iterable[int]) -> dict[int, SampleFacts]:
        """What is remembered of these rows; what is not is read."""
        known = dict(self._known.samples)
        for ranking in self.rankings.values():
            known |= {facts.row: facts for facts in ranking.samples}
        wanted = set(rows)
        missing = sorted(wanted - set(known))
        known |= read_facts(self._stored, missing)
        return {row: known[row] for row in sorted(wanted) if row in known}


def _vectors_of(spec: StoreSpec) -> str:
    """The target whose vectors tell samples apart; '' where there is none."""
    flat = {target.name for target in spec.targets if len(target.shape) == 1}
    return next((name for name in ("embedding", "logits") if name in flat), "")


def _likeness(pair: Pair) -> str:
    return "equal files" if pair.is_equal else f"what both show correlates at {pair.likeness:.3f}"
