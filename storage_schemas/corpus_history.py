"""Owns the states that a corpus was in before images were added to it or mended, and what of its rows each state has."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from .fingerprint import Json
from .json_file import Count, Positive


@dataclass(frozen=True, kw_only=True)
class CorpusState:
    """A corpus as it was, or is.

    Attributes:
        corpus_id: what stores that were made of it name.
        num_samples, num_shards: all of them; those behind the ones of the state before came with this one.
        mended: rows that this state gave an image, which they had not had, or another one.
        replaced: those of them that had an image before.
    """

    corpus_id: str
    num_samples: Positive
    num_shards: Positive
    mended: tuple[Count, ...] = ()
    replaced: tuple[Count, ...] = ()

    def ledger(self, generation: int) -> str:
        """The name of the ledger that holds the receipts of this state's shards, given its number, from 1 on."""
        stage = "retry-failed" if self.mended else "shard"
        return stage if generation == 1 else f"{stage}.{generation}"

    def to_json(self) -> Json:
        """Without what is empty."""
        return {
            name: value if isinstance(value, str | int) else list(value)
            for name, value in asdict(self).items()
            if value
        }


@dataclass(frozen=True, kw_only=True)
class TarFacts:
    """A tar that is used in place, as it was when the corpus was frozen: its samples, which are a shard if there are any, and its bytes."""

    samples: Count
    bytes: Count

    def to_json(self) -> Json:
        return {"samples": self.samples, "bytes": self.bytes}


def parts_of(states: Sequence[CorpusState]) -> tuple[int, ...]:
    """Samples that came with each of a corpus's states, in their order; those that added none are left out."""
    totals = [0, *(state.num_samples for state in states)]
    return tuple(after - before for before, after in itertools.pairwise(totals) if after != before)


def faults_of(states: Sequence[CorpusState], shard_size: int, tars: Sequence[TarFacts] = ()) -> str:
    """What is impossible about a corpus's states; empty where nothing is.

    Args:
        tars: those that are used in place, each a shard but for those without samples.
    """
    if tars:
        shards = [tar.samples for tar in tars if tar.samples]
        too_many = next((samples for samples in shards if samples > shard_size), 0)
        if too_many:
            return f"{too_many} samples in a tar, for shards of {shard_size}"
        for state in states:
            if sum(shards[: state.num_shards]) != state.num_samples or state.num_shards > len(shards):
                return f"{state.num_samples} samples in {state.num_shards} shards of {len(shards)} tars with samples"
        return ""
    for before, state in itertools.pairwise(states):
        grown = state.num_samples - before.num_samples, state.num_shards - before.num_shards
        if grown[0] < 0 or grown[1] != -(-grown[0] // shard_size) or bool(state.mended) == bool(grown[0]):
            return f"{state.num_shards} shards for {state.num_samples} samples behind {before.num_shards} for {before.num_samples}"
    return ""


def changed_rows(states: Iterable[CorpusState]) -> tuple[set[int], set[int]]:
    """Rows that any of these states mended, and those of them that had an image before."""
    mended: set[int] = set()
    replaced: set[int] = set()
    for state in states:
        replaced |= {row for row in state.replaced if row not in mended}
        mended |= set(state.mended)
    return mended, replaced
