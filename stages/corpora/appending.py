"""Owns freezing an append: images that a corpus does not have become its next part, behind what is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from ...pipeline.progress import Progress
from ...pipeline.storage import Location, scratch_file
from ...storage_schemas.errors import MismatchError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.manifest import Corpus, Entry, SourceName, write_manifest
from ...storage_schemas.plain_text import counted
from ...storage_schemas.row_layout import RowLayout
from .corpus import corpus_id, footer_of
from .corpus_sources import CorpusSource
from .draft import DRAFT, Draft
from .generations import freeze, sweep
from .key_order import by_key
from .known_files import KnownFiles
from .listing import Listing, UnreachableCount, read_entries
from .manifest_file import NEXT_MANIFEST, open_manifest
from .shards import ShardSet


@dataclass(frozen=True, kw_only=True)
class Appended:
    """What an append found.

    Attributes:
        new: images that the corpus did not have.
        known: images that it has already.
        changed: those of them that are other files now, or have another label, by kind: number, path of the first. Rows keep what they have.
        maybe_mended: number of images that could not be used and whose files are others now; path of the first.
        vanished: number of its images that these sources do not have any more; path of the first.
        new_sources: names.
    """

    new: int
    known: int
    changed: dict[str, tuple[int, str]]
    maybe_mended: tuple[int, str]
    vanished: tuple[int, str]
    new_sources: tuple[str, ...]

    def to_json(self) -> dict[str, Json]:
        def some(found: tuple[int, str]) -> Json:
            return {"images": found[0], "first": found[1] or None}

        return {
            "new": self.new,
            "known": self.known,
            "changed": {kind: some(found) for kind, found in self.changed.items()},
            "maybe_mended": some(self.maybe_mended),
            "vanished": some(self.vanished),
            "new_sources": list(self.new_sources),
        }

    def lines(self) -> list[str]:
        """The same for people: a sentence each, but for what is as expected."""
        lines = [f"{counted(self.new, 'new image')}, {self.known} there already"]
        if self.new_sources:
            lines[0] += f"; new to this corpus: {', '.join(self.new_sources)}"
        for kind, (count, first) in self.changed.items():
            lines.append(f"{counted(count, 'image')} left as in the shards, with {kind} by now (first: {first})")
        if self.maybe_mended[0]:
            count, first = self.maybe_mended
            lines.append(
                f"{counted(count, 'image')} that could not be used may be mended by now (first: {first}): see `teachonce retry-failed`"
            )
        if self.vanished[0]:
            count, first = self.vanished
            lines.append(f"{counted(count, 'image')} of the shards not among the sources any more (first: {first})")
        return lines


def freeze_append(
    shards: ShardSet,
    sources: Sequence[CorpusSource],
    names: tuple[SourceName, ...],
    *,
    give_up_on_unreachable: bool = False,
) -> tuple[Corpus | None, Appended]:
    """Find what is new in some sources, and freeze the state of the corpus that has it too.

    Rows of the new part are ordered as those of the corpus, within the part. Files that the corpus has are not read.

    Args:
        shards: finished.
        sources: that are walked.
        names: all sources that the corpus then has.

    Returns:
        The next state, None where nothing is new; and what was found.

    Raises:
        InputError: two sources have an image of one path.
        Unreachable: new images cannot be read at the moment, and are not given up.
    """
    corpus, out = shards.corpus, shards.location
    sweep(out, corpus)
    listing, missed = Listing(sources), UnreachableCount()
    known = known_files(shards)
    with Progress("manifest", None) as bar, (out / DRAFT).create() as file:
        new = read_entries(
            known.unknown(listing, names),
            name=corpus.name,
            at_once=corpus.shard_size,
            max_bytes=corpus.max_bytes,
            draft=Draft(out, DRAFT),
            bar=bar,
        )
        _, count = write_manifest(file, missed.watch(new))
    appended = Appended(
        new=count,
        known=known.known,
        changed=dict(sorted(known.changed.kinds.items())),
        maybe_mended=known.maybe_mended.kinds.get("", (0, "")),
        vanished=known.vanished({source.index for source in sources}),
        new_sources=tuple(source.source.name for source in sources if source.index >= known.num_sources),
    )
    if not count:
        (out / DRAFT).remove()
        return None, appended
    if missed.count and not give_up_on_unreachable:
        raise missed.error(count)
    states = corpus.states
    layout = RowLayout.of(corpus.shard_size, [*corpus.layout.parts, count])
    following = replace(
        corpus,
        corpus_id=corpus_id(corpus.name, layout, _write_next(out, corpus, count), corpus.order, corpus.sample_kind),
        num_samples=layout.num_samples,
        num_shards=layout.num_shards,
        manifest_footer=footer_of(out / NEXT_MANIFEST),
        skipped=listing.left_out.skipped,
        left_out=listing.left_out.to_json(),
        no_labels=listing.no_labels.to_json(),
        sources=names,
        history=states,
        mended=(),
        replaced=(),
    )
    freeze(out, following)
    (out / DRAFT).remove()
    return following, appended


def known_files(shards: ShardSet) -> KnownFiles:
    """The files that the corpus has."""
    failed = {bad.path for receipt in shards.receipts() for bad in receipt.invalid_rows}
    return KnownFiles(shards.location, shards.corpus, failed)


def refuse_changed(shards: ShardSet, sources: Sequence[CorpusSource], names: tuple[SourceName, ...]) -> None:
    """Refuse sources that hold anything else than what the corpus has of them.

    Raises:
        MismatchError: more images, fewer, or others.
    """
    known = known_files(shards)
    listing = Listing(sources)
    new = sum(1 for _ in known.unknown(listing, names))
    vanished, first = known.vanished({source.index for source in sources})
    others = sum(count for count, _ in known.changed.kinds.values())
    if new or vanished or others:
        raise MismatchError(
            "the corpus has changed since its manifest was frozen",
            code="corpus-changed",
            where=", ".join(source.source.name for source in sources),
            expected=f"{counted(known.known + vanished, 'image')}, as in the manifest",
            found=f"{counted(new, 'new image')}, {others} with another size or label, {vanished} missing"
            + (f" (first: {first})" if vanished else ""),
            hint="to add what is new, run the same command with --append; or write the changed corpus to another --out",
        )


def _write_next(out: Location, corpus: Corpus, count: int) -> str:
    """Write the next manifest: the present one's row groups, then those of the draft. Returns the digest over all entries."""
    draft = open_manifest(out, None, DRAFT)
    present = open_manifest(out, corpus)
    with (
        Progress("rows in order", corpus.num_samples + count, brief=True) as bar,
        scratch_file(out) as scratch,
        (out / NEXT_MANIFEST).create() as file,
    ):
        rows = by_key(draft, count, scratch) if corpus.order == "hash" else iter(draft)

        def part() -> Iterator[list[Entry]]:
            while entries := list(islice(rows, corpus.shard_size)):
                yield entries

        def shards() -> Iterator[list[Entry]]:
            before = (present.shard(shard) for shard in range(corpus.num_shards))
            for entries in chain(before, part()):
                yield entries
                bar.advance(len(entries))

        digest, _ = write_manifest(file, shards())
    return digest
