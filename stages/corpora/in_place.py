"""Owns freezing a corpus of tars that are used in place: each tar is a shard, and its images are that shard's rows.

A shard has room for as many rows as the largest tar has images, so those of smaller tars are short (see `RowLayout`). Rows are in the
order of the tar. Each tar is read once for its images' digests, one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

from ...pipeline.progress import Progress
from ...pipeline.storage import Location
from ...storage_schemas.corpus_history import TarFacts
from ...storage_schemas.errors import InputError, MismatchError
from ...storage_schemas.manifest import Corpus, Entry, SourceName, write_manifest
from ...storage_schemas.plain_text import counted
from ...storage_schemas.row_layout import RowLayout
from ...storage_schemas.samples import IMAGE
from .appending import Appended
from .corpus import check_frozen, corpus_id, footer_of, no_images
from .corpus_sources import CorpusSource
from .draft import Draft
from .generations import freeze, sweep
from .images import MAX_BYTES
from .listing import Listing, UnreachableCount, read_entries
from .manifest_file import CORPUS, MANIFEST, NEXT_MANIFEST, open_manifest, read_corpus
from .shards import ShardSet
from .tar_in_place import TarInPlace


def sources_in_place(tars: Sequence[TarInPlace]) -> tuple[CorpusSource, ...]:
    """Tars as the sources of a new corpus. Paths begin with the tar's name, also of an only one: more may come."""
    refuse_nested([tar.name for tar in tars])
    return tuple(CorpusSource(source=tar, index=i, prefix=f"{tar.name}/") for i, tar in enumerate(tars))


def refuse_nested(names: Sequence[str]) -> None:
    """Refuse a tar that is named as a folder of another one: the paths of their images could be the same.

    Raises:
        InputError: names the two.
    """
    for one, next_one in pairwise(sorted(f"{name}/" for name in names)):
        if next_one.startswith(one):
            raise InputError(
                "a tar is named as a folder of others",
                code="source-names-nested",
                where=f"{one[:-1]}, {next_one[:-1]}",
                hint="name one of them otherwise: NAME=PATH",
            )


def name_of(tars: Sequence[TarInPlace]) -> str:
    """What a corpus is called that nobody named: as the folders, or buckets, that its tars lie in."""
    return "+".join(sorted({tar.location.folder.address.rstrip("/").rpartition("/")[2] for tar in tars}))


def freeze_in_place(
    sources: Sequence[CorpusSource],
    out: Location,
    *,
    name: str | None,
    shard_size: int | None,
    max_pixels: int,
    sample_kind: str = IMAGE,
    max_bytes: int = MAX_BYTES,
    give_up_on_unreachable: bool = False,
) -> Corpus:
    """`freeze_corpus` of tars in place.

    Args:
        sources: as `sources_in_place` gives them.
        shard_size: rows from one tar's first to that of the next; None for as many as the largest tar has.

    Raises:
        InputError: no images; a tar with more than `shard_size`.
        DamagedError: a tar has changed.
        MismatchError: `out` holds another corpus or other settings, or these are other tars.
        Unreachable: a tar cannot be read at the moment.
    """
    tars = [_tar(source) for source in sources]
    settings: dict[str, Any] = {
        "name": name,
        "max_pixels": max_pixels,
        "max_bytes": max_bytes,
        "sample_kind": sample_kind,
    }
    frozen = out / CORPUS
    if frozen.exists():
        corpus = read_corpus(out)
        check_frozen(corpus, out, **settings, resize=None, shard_size=shard_size, in_place=True)
        check_tars(corpus, sources, [source.name for source in sources])
        return corpus
    settings["name"] = name = name or name_of(tars)
    out.make_dir()
    listing, facts, missed = Listing(sources), _Facts(sources, shard_size), UnreachableCount()
    with Progress("manifest", None) as bar, (out / MANIFEST).create() as file:
        shards = _read(sources, listing, facts, out, name, max_bytes, bar)
        digest, _ = write_manifest(file, missed.watch(shards))
        if not facts.num_samples:
            raise no_images([source.source.name for source in sources], listing.left_out)
    if missed.count and not give_up_on_unreachable:
        raise missed.error(facts.num_samples)
    size = shard_size or facts.largest
    corpus = Corpus(
        **settings,
        resize=None,
        shard_size=size,
        corpus_id=corpus_id(name, RowLayout.of(size, facts.shards), digest, "source", sample_kind),
        listing_id=listing.digest,
        num_samples=facts.num_samples,
        num_shards=len(facts.shards),
        manifest_footer=footer_of(out / MANIFEST),
        skipped=listing.left_out.skipped,
        left_out=listing.left_out.to_json(),
        no_labels=listing.no_labels.to_json(),
        sources=tuple(source.name for source in sources),
        tars=facts.tars,
    )
    frozen.write_bytes(corpus.to_bytes())
    return corpus


def append_in_place(
    shards: ShardSet,
    sources: Sequence[CorpusSource],
    names: tuple[SourceName, ...],
    *,
    give_up_on_unreachable: bool = False,
) -> tuple[Corpus | None, Appended]:
    """`freeze_append` of tars in place: those that the corpus does not have become its next shards. The others are not read.

    Raises:
        InputError: a new tar with more images than a shard has rows.
        DamagedError: a tar of the corpus has changed.
        Unreachable: a new tar cannot be read at the moment.
    """
    corpus, out = shards.corpus, shards.location
    sweep(out, corpus)
    refuse_nested([name.name for name in names])
    new = [source for source in sources if source.index >= len(corpus.sources)]
    known = [source for source in sources if source.index < len(corpus.sources)]
    _check_sizes(corpus, known)
    listing, facts, missed = Listing(new), _Facts(new, corpus.shard_size), UnreachableCount()
    present = open_manifest(out, corpus)
    with Progress("manifest", None) as bar, (out / NEXT_MANIFEST).create() as file:
        before = (present.shard(shard) for shard in range(corpus.num_shards))
        added = _read(new, listing, facts, out, corpus.name, corpus.max_bytes, bar)
        digest, _ = write_manifest(file, chain(before, missed.watch(added)))
    appended = Appended(
        new=facts.num_samples,
        known=sum(corpus.tars[source.index].samples for source in known),
        changed={},
        maybe_mended=(0, ""),
        vanished=(0, ""),
        new_sources=tuple(source.source.name for source in new),
    )
    if not facts.num_samples:
        (out / NEXT_MANIFEST).remove()
        return None, appended
    if missed.count and not give_up_on_unreachable:
        raise missed.error(facts.num_samples)
    tars = (*corpus.tars, *facts.tars)
    layout = RowLayout.of(corpus.shard_size, [tar.samples for tar in tars if tar.samples])
    following = replace(
        corpus,
        corpus_id=corpus_id(corpus.name, layout, digest, corpus.order, corpus.sample_kind),
        num_samples=layout.num_samples,
        num_shards=corpus.num_shards + len(facts.shards),
        manifest_footer=footer_of(out / NEXT_MANIFEST),
        skipped=listing.left_out.skipped,
        left_out=listing.left_out.to_json(),
        no_labels=listing.no_labels.to_json(),
        sources=names,
        history=corpus.states,
        mended=(),
        replaced=(),
        tars=tars,
    )
    freeze(out, following)
    return following, appended


def check_tars(corpus: Corpus, sources: Sequence[CorpusSource], names: Sequence[SourceName]) -> None:
    """Refuse other tars than those of the corpus, or tars of other sizes.

    Args:
        names: all that the corpus would have with these.

    Raises:
        MismatchError: more tars, fewer, or others.
        DamagedError: one has another size.
    """
    known, given = [one.name for one in corpus.sources], [source.source.name for source in sources]
    new = [one.name for one in names if one.name not in known]
    missing = [name for name in known if name not in given]
    if new or missing:
        raise MismatchError(
            "these are not the tars of the first run",
            code="corpus-changed",
            where=(new or missing)[0],
            expected=f"{counted(len(known), 'tar')}, as in the manifest",
            found=f"{counted(len(new), 'new tar')}, {len(missing)} missing",
            hint=f"name all of them, with those that were there first{'; to add what is new, add --append' if new else ''}; "
            "or index these to another --out",
        )
    _check_sizes(corpus, sources)


def _check_sizes(corpus: Corpus, sources: Sequence[CorpusSource]) -> None:
    for source in sources:
        _tar(source).refuse_other(corpus.tars[source.index].bytes)


class _Facts:
    """What reading found of each tar, as it goes on.

    Args:
        limit: the most images that a tar may have; None for any number.
    """

    def __init__(self, sources: Sequence[CorpusSource], limit: int | None) -> None:
        self._sources, self._limit = sources, limit
        self._samples: dict[int, int] = {}

    def add(self, source: CorpusSource, samples: int) -> None:
        """
        Raises:
            InputError: more than a shard may have.
        """
        if self._limit is not None and samples > self._limit:
            raise InputError(
                "a tar holds more images than a shard has rows",
                code="tar-larger-than-shard",
                where=_tar(source).location,
                expected=f"{self._limit} at most",
                found=samples,
                hint="index such tars to another --out, or all of them with a larger --shard-size",
            )
        self._samples[source.index] = samples

    @property
    def tars(self) -> tuple[TarFacts, ...]:
        """Of all tars, in their order."""
        return tuple(
            TarFacts(samples=self._samples.get(source.index, 0), bytes=_tar(source).size) for source in self._sources
        )

    @property
    def shards(self) -> list[int]:
        """The samples of each shard."""
        return [tar.samples for tar in self.tars if tar.samples]

    @property
    def num_samples(self) -> int:
        return sum(self._samples.values())

    @property
    def largest(self) -> int:
        return max(self._samples.values())


def _read(
    sources: Sequence[CorpusSource],
    listing: Listing,
    facts: _Facts,
    out: Location,
    name: str,
    max_bytes: int,
    bar: Progress,
) -> Iterator[list[Entry]]:
    """The entries of one tar after another, each as a list; tars without images have none. No tar is begun before the last is read."""
    for source in sources:
        files = list(listing.of(source))
        facts.add(source, len(files))
        if files:
            yield from read_entries(
                files, name=name, at_once=len(files), max_bytes=max_bytes, draft=Draft(out), bar=bar
            )


def _tar(source: CorpusSource) -> TarInPlace:
    assert isinstance(source.source, TarInPlace)
    return source.source
