"""Owns which pairs a training reads, and how they come: everything that a stream of them needs to know before a student is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...pipeline.storage import Location
from ..corpora.shards import ShardSet
from ..decoding.work import Pool
from ..measures.target_statistics import Statistics, target_statistics
from ..pairs.local_copies import LocalCache
from ..pairs.other_store import OF, OtherStore
from ..pairs.sources import TargetSource
from ..pairs.stream import TargetStream
from ..pairs.training_rows import RowRule, TrainingRows
from ..views.anew import ViewAnew


@dataclass(frozen=True, kw_only=True)
class TrainingPairs:
    """The pairs of one training.

    Attributes:
        shards: the corpus, as it was when the store was made.
        store: with the targets.
        generation: the name of the store's that is read; None for the current one.
        targets: names of those that are read.
        sources: of targets that the store does not hold.
        rows: those that train, or the rule that finds them; None for all.
        anew: views that are drawn anew in each epoch.
        order_seed: of the order.
        views: epoch e reads view e mod this; None for all that the store has.
        accept_other_pixels: read on where images look otherwise than the teacher saw them.
        local_cache: copies of shards on this machine; decides no bytes.
    """

    shards: ShardSet
    store: Location
    targets: tuple[str, ...]
    sources: tuple[TargetSource, ...] = ()
    rows: RowRule | TrainingRows | None = None
    anew: Mapping[str, ViewAnew] = field(default_factory=dict)
    order_seed: int = 0
    views: int | None = None
    accept_other_pixels: bool = False
    generation: str | None = None
    local_cache: LocalCache | None = None

    def open(
        self, *, image_size: int | None, batch_size: int, pool: Pool | None = None, pin_memory: bool = False
    ) -> TargetStream:
        """The stream; its arguments are those of `TargetStream`."""
        return TargetStream(
            self.shards,
            self.store,
            image_size=image_size,
            batch_size=batch_size,
            seed=self.order_seed,
            targets=self.targets,
            sources=self.sources,
            rows=self.rows,
            anew=self.anew,
            views=self.views,
            drop_last=True,
            pool=pool,
            pin_memory=pin_memory,
            accept_other_pixels=self.accept_other_pixels,
            generation=self.generation,
            local_cache=self.local_cache,
        )

    def found(self, stream: TargetStream) -> TrainingPairs:
        """The same pairs, with what a stream of them has found out: whoever reads them next, reads these."""
        return replace(
            self,
            shards=stream.shards,
            rows=stream.rows,
            views=stream.num_views,
            generation=stream.store.generation,
        )

    def joined(self, others: Sequence[TrainingPairs]) -> TrainingPairs:
        """The same pairs, with the targets and sources of other trainings that read them too, each once."""
        sources = list(self.sources)
        for other in others:
            sources += [source for source in other.sources if source not in sources]
        targets = dict.fromkeys([*self.targets, *(name for other in others for name in other.targets)])
        return replace(self, targets=tuple(targets), sources=tuple(sources))

    def statistics(self, names: Sequence[str], stream: TargetStream) -> dict[str, Statistics]:
        """Means and standard deviations of targets, of the store and of others beside it; see `target_statistics`.

        Args:
            names: of these targets.
            stream: of these pairs.
        """
        found: dict[str, Statistics] = {}
        others = [source for source in self.sources if isinstance(source, OtherStore)]
        for facts, prefix in ((stream.store, ""), *((other.facts, f"{other.name}{OF}") for other in others)):
            own = {
                name.removeprefix(prefix): name
                for name in names
                if (OF in name) == bool(prefix) and name.startswith(prefix)
            }
            if own:
                found |= target_statistics(facts, own, stream.num_views)
        return found
