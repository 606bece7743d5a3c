"""`teachonce shard`: writes one WebDataset tar, one offset index and one receipt for each shard of a frozen corpus."""

from __future__ import annotations

import hashlib
import shlex
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from ..pipeline.ledger import Ledger
from ..pipeline.output import check_output, claim_output
from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..pipeline.types import Resources, RunUnit, Timer, Unit
from ..storage_schemas.corpus_history import CorpusState
from ..storage_schemas.errors import IncompleteError, InputError, Unreachable
from ..storage_schemas.fingerprint import Fingerprint
from ..storage_schemas.formats import SHARDS
from ..storage_schemas.manifest import Corpus, Entry, ManifestReader
from ..storage_schemas.plain_text import typed
from ..storage_schemas.receipt import InvalidRow, Output, Receipt
from ..storage_schemas.samples import content_digest, sample_metadata, shard_name
from ..storage_schemas.tar_file import TarFile
from ..storage_schemas.tar_index import encode_index
from .corpora import generations
from .corpora.appending import Appended, freeze_append, refuse_changed
from .corpora.corpus import check_frozen, freeze_corpus
from .corpora.corpus_sources import CorpusSource, first_sources, sources_again
from .corpora.images import BadImage, one_image
from .corpora.in_place import append_in_place, check_tars, freeze_in_place, sources_in_place
from .corpora.manifest_file import CORPUS, open_manifest, read_corpus
from .corpora.reading import unreachable_reason
from .corpora.shards import ShardSet
from .corpora.source import Source
from .corpora.spelling import split_name
from .corpora.tar_in_place import TarInPlace
from .inputs.sources import open_sources
from .inputs.tars_in_place import open_tars_in_place
from .samples.images import IMAGES
from .samples.kind import SampleKind
from .settings.shard import ShardSettings
from .shard_in_place import index_tar


@dataclass(frozen=True, kw_only=True)
class ShardStage:
    """Shard *i* of the manifest becomes `NNNNNN.tar`, `NNNNNN.index.npy` and a receipt.

    Attributes:
        sources: those that its shards need, at least.
        corpus: in the state that it has once they are all done.
        shards: that it writes; None for all.
        generation: the number of the state that they came with; its ledger has their receipts.
        appended: what `--append` found; None without it, and where an append is resumed.
        give_up_on_unreachable: images that cannot be read at the moment become unusable rows; else they fail their shard.
        in_place: each source is a tar that is used where it is.
    """

    out: Location
    sources: tuple[CorpusSource, ...]
    corpus: Corpus
    kind: SampleKind
    shards: Sequence[int] | None = None
    generation: int = 1
    appended: Appended | None = None
    give_up_on_unreachable: bool = False
    in_place: bool = False

    name = "shard"
    resources = Resources()

    @property
    def _state(self) -> CorpusState:
        return self.corpus.states[self.generation - 1]

    @property
    def ledger(self) -> str:
        """The name of its ledger."""
        return self._state.ledger(self.generation)

    @property
    def fingerprint(self) -> Fingerprint:
        grown = 1 if self.generation == 1 else 2
        fields = {
            "schema_version": SHARDS.version if self.corpus.in_place else grown,
            "corpus_id": self._state.corpus_id,
        }
        if self.corpus.resize is not None:
            fields |= {"resize": self.corpus.resize, **(self.kind.reducer() or {})}
        return Fingerprint(fields=fields)

    def plan(self) -> Iterator[Unit]:
        for shard in range(self.corpus.num_shards) if self.shards is None else self.shards:
            yield Unit(key=shard_name(shard), rows=len(self.corpus.rows(shard)), inputs={"shard": shard})

    def open(self) -> RunUnit:
        return _Writing(self, open_manifest(self.out, self.corpus))

    #: What the names of the files end in until they take the place of others.
    suffix = ""

    def images(self, shard: int) -> ShardImages:
        """Where the images of a shard come from."""
        return _FromSources(self)

    def _write(self, shard: int, entries: Sequence[Entry], timer: Timer) -> Receipt:
        if self.in_place:
            source = self._source(entries[0]).source
            assert isinstance(source, TarInPlace)
            return index_tar(
                source,
                shard=shard,
                rows=self.corpus.rows(shard),
                size=self.corpus.tars[entries[0].source].bytes,
                entries=entries,
                probe=lambda data: self.kind.probe(data, self.corpus.max_pixels),
                out=self.out,
                fingerprint=self.fingerprint.digest,
                timer=timer,
            )
        records: list[tuple[bytes, int, int, int, int]] = []
        invalid: list[InvalidRow] = []
        hasher = hashlib.blake2b(digest_size=16)
        names = [f"{shard_name(shard)}{ending}" for ending in generations.SHARD_FILES]
        tar, index = (self.out / f"{name}{self.suffix}" for name in names)
        with closing(self.images(shard)) as images, timer.laps() as lap:
            with tar.create(settle=False) as file:
                writer = TarFile(file)
                for row, entry in zip(self.corpus.rows(shard), entries, strict=True):
                    hasher.update(f"{row} {entry.key} {entry.digest}\n".encode())
                    try:
                        data = images.read(row, entry)
                        lap("read")
                        with one_image(entry.path):
                            data, extension = images.check(row, data)
                            metadata = sample_metadata(path=entry.path, row=row, digest=entry.digest, label=entry.label)
                        lap("check")
                    except (BadImage, Unreachable) as bad:
                        if isinstance(bad, Unreachable) and not self.give_up_on_unreachable:
                            bad.hint = f"{bad.hint}, or add --give-up-on-unreachable to leave such images out"
                            raise
                        reason = unreachable_reason(bad) if isinstance(bad, Unreachable) else str(bad)
                        invalid.append(InvalidRow(row=row, path=entry.path, reason=reason))
                        timer.advance(1)
                        lap("check")
                        continue
                    offset = writer.add(f"{entry.key}.{extension}", data)
                    writer.add(f"{entry.key}.json", metadata)
                    records.append((entry.key.encode(), row, offset, len(data), zlib.crc32(data)))
                    timer.advance(1)
                    lap("write")
                writer.finish()
            index_bytes = encode_index(records)
            index.write_bytes(index_bytes)  # syncs the folder too, for both
            lap("write")
        return Receipt(
            key=shard_name(shard),
            outputs=(
                Output(path=names[0], bytes=writer.size, sha256=writer.sha256.hexdigest()),
                Output(path=names[1], bytes=len(index_bytes), sha256=hashlib.sha256(index_bytes).hexdigest()),
            ),
            rows=len(entries),
            invalid_rows=tuple(invalid),
            digest=hasher.hexdigest(),
            fingerprint=self.fingerprint.digest,
        )

    def read(self, entry: Entry) -> bytes:
        """The file of an image, as the manifest has it."""
        if entry.problem is not None:
            raise BadImage(entry.problem)
        try:
            data = self._source(entry).read(entry)
        except BadImage:  # it could be read when the manifest was frozen
            data = b""
        if len(data) != entry.size or content_digest(data) != entry.digest:
            raise InputError(
                "a file has changed since the manifest was frozen",
                code="file-changed",
                where=entry.path,
                expected=f"{entry.size} bytes with digest {entry.digest}",
                found=f"{len(data)} bytes, {content_digest(data)}",
                hint=self._instead,
            )
        return data

    def check(self, data: bytes) -> tuple[bytes, str]:
        """The bytes that a file becomes in the tar, and the extension of their format."""
        if self.corpus.resize is not None:
            data = self.kind.reduce(data, self.corpus.resize, self.corpus.max_pixels)
        return data, self.kind.probe(data, self.corpus.max_pixels)

    def _source(self, entry: Entry) -> CorpusSource:
        for source in self.sources:
            if source.index == entry.source:
                return source
        name = self.corpus.sources[entry.source].name if self.corpus.sources else str(entry.source)
        raise InputError(
            "a source of this shard was not given",
            code="source-not-given",
            where=entry.path,
            expected=f"the source '{name}'",
            found=", ".join(source.source.name for source in self.sources),
            hint=f"add {typed(name)}=PATH to the command",
        )

    @property
    def _instead(self) -> str:
        if read_corpus(self.out).corpus_id == self.corpus.corpus_id:
            return "put the file back, or shard the changed corpus to another --out"
        given_up = shlex.quote(str(self.out / generations.NEXT_CORPUS))
        return f"put the file back, then run the same command again; or give up what was begun: rm {given_up}"


class ShardImages(Protocol):
    """The images of one shard."""

    def read(self, row: int, entry: Entry) -> bytes:
        """The bytes of one.

        Raises:
            BadImage: it cannot be used.
            Unreachable: it cannot be read at the moment.
        """

    def check(self, row: int, data: bytes) -> tuple[bytes, str]:
        """The bytes that go into the tar, and the extension of their format; raises `BadImage`, or whatever a decoder does."""

    def close(self) -> None:
        """Close what reading has opened."""


@dataclass(frozen=True)
class _FromSources:
    """Each from its source."""

    stage: ShardStage

    def read(self, row: int, entry: Entry) -> bytes:
        return self.stage.read(entry)

    def check(self, row: int, data: bytes) -> tuple[bytes, str]:
        return self.stage.check(data)

    def close(self) -> None:
        pass  # nothing stays open


class AppendStage(ShardStage):
    """The new shards of a corpus that grows."""

    def commit(self) -> None:
        """Make them a part of the corpus."""
        generations.commit(self.out, self.corpus)


@dataclass(frozen=True)
class _Writing:
    """Writes one shard after another."""

    stage: ShardStage
    manifest: ManifestReader

    def __call__(self, unit: Unit, timer: Timer) -> Receipt:
        shard = unit.inputs["shard"]
        return self.stage._write(shard, self.manifest.shard(shard), timer)


def plan_shard(
    corpus: Sequence[str],
    *,
    out: Location | str,
    settings: ShardSettings | None = None,
    kind: SampleKind = IMAGES,
) -> ShardStage:
    """Freeze the corpus and return the stage that shards it.

    With `append` in the settings it is the stage that adds what is new; one without units where nothing is.
    Without, in shards that grew: the stage that does anew what of them lost its receipt.

    Args:
        corpus: folders, tars, or lists, each `PATH` or `NAME=PATH`.
        out: folder for manifest, tars and ledger.
        settings: None for the defaults.
        kind: what files count as samples, and how they are checked and reduced.

    Raises:
        InputError, MismatchError, Unreachable: see `open_sources`, `freeze_corpus` and `freeze_append`; an impossible setting.
        IncompleteError: what is to be added to is not finished; or, without `append`, what was begun to be added.
    """
    settings = settings or ShardSettings()
    check(settings)
    location = Location.of(out)
    if settings.resize is not None and kind.reducer() is None:
        raise InputError(
            f"samples of kind '{kind.name}' cannot be reduced",
            code="sample-kind-not-resizable",
            where="--resize",
            hint="leave it out",
        )
    if settings.in_place:
        return _plan_in_place(corpus, location, settings, kind)
    check_output(location, "shard", inputs=corpus)
    sources = open_sources(corpus, kind=kind, max_bytes=settings.max_bytes)
    if settings.append or has_grown(location):
        named = any(split_name(argument)[0] for argument in corpus)
        return _plan_grown(sources, location, settings, kind, named=named)
    claim_output(location, "shard")
    placed = first_sources(sources)
    return ShardStage(
        out=location,
        sources=placed,
        corpus=freeze_corpus(placed, location, sample_kind=kind.name, **_of_corpus(settings)),
        kind=kind,
        give_up_on_unreachable=settings.give_up_on_unreachable,
    )


def _plan_in_place(corpus: Sequence[str], out: Location, settings: ShardSettings, kind: SampleKind) -> ShardStage:
    """Of tars that stay where they are."""
    for option, value in (("--resize", settings.resize), ("--order hash", settings.order == "hash" or None)):
        if value is not None:
            raise InputError(
                f"{option} goes only with tars that are written",
                code="options-exclude-each-other",
                where=option,
                found="--in-place",
                hint="leave one out",
            )
    tars = open_tars_in_place(corpus, kind=kind)
    check_output(out, "shard", inputs=sorted({tar.location.folder for tar in tars}))
    if settings.append or has_grown(out):
        return _plan_grown(tars, out, settings, kind, named=True)
    claim_output(out, "shard")
    placed = sources_in_place(tars)
    return ShardStage(
        out=out,
        sources=placed,
        corpus=freeze_in_place(
            placed,
            out,
            name=settings.name,
            shard_size=settings.shard_size,
            max_pixels=settings.max_pixels,
            sample_kind=kind.name,
            max_bytes=settings.max_bytes,
            give_up_on_unreachable=settings.give_up_on_unreachable,
        ),
        kind=kind,
        in_place=True,
    )


def _of_corpus(settings: ShardSettings) -> dict[str, Any]:
    fields = {**asdict(settings), "shard_size": settings.samples_per_shard}
    return {name: value for name, value in fields.items() if name not in ("append", "in_place")}


def has_grown(out: Location) -> bool:
    """Whether a folder of shards has more states than its first, or one that is being prepared."""
    return (out / CORPUS).exists() and (generations.pending(out) is not None or bool(read_corpus(out).history))


def _plan_grown(
    sources: Sequence[Source], out: Location, settings: ShardSettings, kind: SampleKind, *, named: bool
) -> ShardStage:
    """The stage that adds to shards; without `append`, the one that does shards anew whose receipts are gone."""
    prepared = generations.pending(out) if (out / CORPUS).exists() else None
    shards = ShardSet.open(out) if settings.append else ShardSet(out)
    corpus = shards.corpus
    fields = _of_corpus(settings)
    fields.pop("give_up_on_unreachable")
    if settings.in_place:
        fields["shard_size"] = settings.shard_size
    check_frozen(corpus, out, sample_kind=kind.name, in_place=settings.in_place, **fields)
    placed, names = sources_again(sources, prepared or corpus, out, named=named)
    stage = ShardStage(
        out=out,
        sources=placed,
        corpus=corpus,
        kind=kind,
        give_up_on_unreachable=settings.give_up_on_unreachable,
        in_place=settings.in_place,
    )
    if prepared is not None:
        if not settings.append or prepared.mended or len(names) > len(prepared.sources):
            raise unfinished(out, prepared)
        return _appending(stage, prepared, None)
    if settings.append:
        following, appended = (append_in_place if settings.in_place else freeze_append)(
            shards, placed, names, give_up_on_unreachable=settings.give_up_on_unreachable
        )
        if following is None:
            return replace(stage, shards=(), generation=len(corpus.states), appended=appended)
        return _appending(stage, following, appended)
    if settings.in_place:
        check_tars(corpus, placed, names)
    else:
        refuse_changed(shards, placed, names)
    own = [[shard for shard in range(corpus.num_shards) if shards.ledger_of(shard) == one] for one in shards.ledgers]
    lost = (place for place, one in enumerate(shards.ledgers) if not _are_intact(one, own[place]))
    place = next(lost, len(own) - 1)
    return replace(stage, shards=own[place], generation=place + 1)


def _appending(stage: ShardStage, corpus: Corpus, appended: Appended | None) -> AppendStage:
    """The stage that writes the last state's shards."""
    return AppendStage(
        out=stage.out,
        sources=stage.sources,
        corpus=corpus,
        kind=stage.kind,
        shards=range(corpus.history[-1].num_shards, corpus.num_shards),
        generation=len(corpus.states),
        appended=appended,
        give_up_on_unreachable=stage.give_up_on_unreachable,
        in_place=stage.in_place,
    )


def _are_intact(ledger: Ledger, shards: Sequence[int]) -> bool:
    receipts = (ledger.receipt(shard_name(shard)) for shard in shards)
    return all(receipt is not None and ledger.is_intact(receipt) for receipt in receipts)


def unfinished(out: Location, prepared: Corpus) -> IncompleteError:
    """The error for another command than the one that began the next state."""
    begun = "`teachonce retry-failed`" if prepared.mended else "`teachonce shard --append`"
    names = ", ".join(source.name for source in prepared.sources)
    return IncompleteError(
        "what was begun to be added to these shards is not finished",
        code="append-unfinished",
        where=out,
        expected=f"the same {begun} command again" + ("" if prepared.mended else f", with the sources {names}"),
        hint=f"finish that first; or give it up: rm {shlex.quote(str(out / generations.NEXT_CORPUS))}",
    )
