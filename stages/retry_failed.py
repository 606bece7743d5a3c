"""`teachonce retry-failed`: reads the failed images of a corpus again; those that are mended by now fill the rows that they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..pipeline.storage import Location
from ..storage_schemas.errors import InputError
from ..storage_schemas.fingerprint import Json
from ..storage_schemas.manifest import Corpus, Entry
from ..storage_schemas.plain_text import counted, typed
from .corpora import generations
from .corpora.corpus_sources import CorpusSource, sources_again
from .corpora.images import BadImage
from .corpora.mending import Retried, freeze_mended, read_again
from .corpora.shards import ShardReader, ShardSet
from .corpora.spelling import split_name
from .inputs.sources import open_sources
from .measures.failed import FailedImage, by_kind, failed_in_shards, failed_in_store
from .samples.kind import SampleKind
from .samples.registry import kind_named
from .settings.retry_failed import RetrySettings
from .shard import AppendStage, ShardImages, unfinished


class MendStage(AppendStage):
    """The shards with mended images are written anew: what they have from their tars, the rest from the sources."""

    name = "retry-failed"

    @property
    def suffix(self) -> str:  # type: ignore[override]
        return f".{self.generation}"

    def images(self, shard: int) -> ShardImages:
        return _Mended(self, shard)


class _Mended:
    """The images of a shard that is mended."""

    def __init__(self, stage: MendStage, shard: int) -> None:
        self._stage, self._shard = stage, shard
        self._mended = set(stage.corpus.mended)
        shards = ShardSet(stage.out)
        self._reader: ShardReader = shards.reader(shard)
        start = shards.corpus.rows(shard).start
        self._before = dict(enumerate(shards.manifest().shard(shard), start))

    def read(self, row: int, entry: Entry) -> bytes:
        if row in self._mended or (row in self._reader.invalid and entry != self._before[row]):
            return self._stage.read(entry)
        if row in self._reader.invalid:
            raise BadImage(self._reader.invalid[row])
        return self._reader.read(row)

    def check(self, row: int, data: bytes) -> tuple[bytes, str]:
        if row in self._mended or row in self._reader.invalid:
            return self._stage.check(data)
        return data, self._stage.kind.probe(data, self._stage.corpus.max_pixels)

    def close(self) -> None:
        self._reader.close()


@dataclass(frozen=True, kw_only=True)
class Retry:
    """What a look at failed images found.

    Attributes:
        shards: as they are before.
        retried: failed images that were looked at; none where that was done before and writing goes on.
        stage: writes the shards with mended images anew; None where there are none.
    """

    shards: ShardSet
    retried: tuple[Retried, ...]
    stage: MendStage | None

    @cached_property
    def mended(self) -> tuple[Retried, ...]:
        """Those that can be used now, be it that their files are the ones that the shards have."""
        return tuple(one for one in self.retried if not one.reason)

    @cached_property
    def failing(self) -> tuple[Retried, ...]:
        return tuple(one for one in self.retried if one.reason)

    def to_json(self) -> Json:
        return {
            "mended": [{"row": one.row, "path": one.path} for one in self.mended],
            "failing": [{"row": one.row, "path": one.path, "reason": one.reason} for one in self.failing],
        }


def failed_images(shards: Location | str, stores: Sequence[Location | str] = ()) -> list[FailedImage]:
    """The table of failed images of shards and of stores that were made from them, in row order.

    Raises:
        InputError, IncompleteError: no finished shards, or no store.
        MismatchError: a store of another corpus.
    """
    shard_set = ShardSet.open(shards)
    found = list(failed_in_shards(shard_set))
    for store in stores:
        found += _failed_by_cache(shard_set, Location.of(store))
    return sorted(found, key=lambda one: (one.row, one.store or ""))


def _failed_by_cache(shards: ShardSet, store: Location) -> list[FailedImage]:
    """Images that the shards have and a store has no targets of."""
    from .measures.stored import Stored

    stored = Stored.open(store, shards.location)
    assert stored.shards is not None  # they were given
    receipts = stored.receipts.receipts(stored.rows.num_shards)
    still = {bad.row for receipt in shards.receipts() for bad in receipt.invalid_rows}
    found = failed_in_store(receipts, store, stored.shards)
    return [one for one in found if one.stage == "cache" and one.row not in still]


def plan_retry(
    shards: Location | str,
    *,
    settings: RetrySettings,
    stores: Sequence[Location | str] = (),
) -> Retry:
    """Read the failed images of shards again, and freeze the state of the corpus that has those that are mended.

    Args:
        shards: folder of finished shards.
        settings: `source` names what is read.
        stores: made from these shards: images that their teachers' pass could not use are tried too.

    Raises:
        InputError: no sources, or not those of the corpus.
        IncompleteError: the shards are not finished, or images were begun to be added to them.
        MismatchError: a store of another corpus.
    """
    shard_set = ShardSet.open(shards)
    out, corpus = shard_set.location, shard_set.corpus
    if not settings.source:
        names = " ".join(f"--source {typed(source.name)}=PATH" for source in corpus.sources) or "--source PATH"
        raise InputError(
            "failed images are read again from their sources",
            code="retry-needs-source",
            where="--source",
            expected=names,
            hint=f"name them, or see what failed: teachonce retry-failed {typed(out)} --list",
        )
    prepared = generations.pending(out)
    if prepared is not None and not prepared.mended:
        raise unfinished(out, prepared)
    kind = kind_named(corpus.sample_kind, where=out)
    sources = open_sources(settings.source, kind=kind, max_bytes=corpus.max_bytes)
    named = any(split_name(argument)[0] for argument in settings.source)
    placed, names_after = sources_again(sources, corpus, out, named=named)
    if len(names_after) > len(corpus.sources or names_after):
        known = [source.name for source in corpus.sources]
        raise InputError(
            "the shards were not made of this source",
            code="retry-other-source",
            where=", ".join(name.name for name in names_after[len(known) :]),
            expected=", ".join(known),
            hint="give it the name that it had: --source NAME=PATH",
        )
    if prepared is not None:
        return Retry(shards=shard_set, retried=(), stage=_stage(shard_set, placed, prepared, kind))
    failed = {one.row: one.path for one in failed_images(out, stores)}
    retried = tuple(read_again(shard_set, placed, failed, lambda data: _use(kind, corpus, data)))
    following = freeze_mended(shard_set, retried)
    stage = None if following is None else _stage(shard_set, placed, following, kind)
    return Retry(shards=shard_set, retried=retried, stage=stage)


def _use(kind: SampleKind, corpus: Corpus, data: bytes) -> None:
    """Whatever `shard` and `cache` do with an image's bytes."""
    if corpus.resize is not None:
        data = kind.reduce(data, corpus.resize, corpus.max_pixels)
    kind.probe(data, corpus.max_pixels)
    kind.decode(data, corpus.max_pixels)


def _stage(shards: ShardSet, sources: tuple[CorpusSource, ...], corpus: Corpus, kind: SampleKind) -> MendStage:
    return MendStage(
        out=shards.location,
        sources=sources,
        corpus=corpus,
        kind=kind,
        shards=sorted({row // corpus.shard_size for row in corpus.mended}),
        generation=len(corpus.states),
    )


def retry_text(retry: Retry) -> list[str]:
    """What was found, a sentence each, for people."""
    if retry.stage is not None and not retry.retried:
        return ["what was begun goes on"]
    lines = [f"{counted(len(retry.retried), 'failed image')} read again, {len(retry.mended)} mended"]
    for kind, images in by_kind(_as_failed(retry.failing)):
        first = images[0]
        lines.append(f"{len(images)} still × {kind} (first: row {first.row}, {first.path})")
    return lines


def _as_failed(retried: Sequence[Retried]) -> list[FailedImage]:
    return [FailedImage(row=one.row, key="", path=one.path, reason=one.reason, stage="shard") for one in retried]
