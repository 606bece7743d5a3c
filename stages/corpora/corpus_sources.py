"""Owns the sources of a corpus as its manifest has them: each with a number, and with what the paths of its images begin with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from ...storage_schemas.manifest import Corpus, Entry, SourceName
from ...storage_schemas.plain_text import typed
from .manifest_file import open_manifest
from .reading import read_image
from .source import Source, SourceFile


@dataclass(frozen=True, kw_only=True)
class CorpusSource:
    """One source of a corpus.

    Attributes:
        index: its number in the manifest.
        prefix: what its images' paths in the corpus begin with: its name and a slash, or nothing for an only source.
    """

    source: Source
    index: int
    prefix: str

    @property
    def name(self) -> SourceName:
        return SourceName(name=self.source.name, prefix=self.prefix)

    def walk(self) -> Iterator[tuple[str, SourceFile]]:
        """Its files, each with its path in the corpus."""
        for found in self.source.walk():
            yield self.prefix + found.path, found

    def read(self, entry: Entry) -> bytes:
        """The bytes of one of its images.

        Raises:
            BadImage, Unreachable: as in `read_image`.
        """
        return read_image(self.source, entry.path.removeprefix(self.prefix), entry.offset, entry.size)


def first_sources(sources: Sequence[Source]) -> tuple[CorpusSource, ...]:
    """The sources of a new corpus, numbered in their order."""
    return tuple(
        CorpusSource(source=source, index=index, prefix="" if len(sources) == 1 else f"{source.name}/")
        for index, source in enumerate(sources)
    )


def sources_again(
    sources: Sequence[Source], corpus: Corpus, out: Location, *, named: bool
) -> tuple[tuple[CorpusSource, ...], tuple[SourceName, ...]]:
    """Sources that are given for a corpus that is there: those that it knows by name, and behind them new ones.

    The paths of a new source always begin with its name, so that no image of it gets the path of another source's.

    Args:
        sources: in bytewise order of their names.
        corpus: in the folder `out`.
        named: whether the user named one of them; else an only one is taken for the only source of a corpus that does not record
            what that was called.

    Returns:
        Those that were given, by their numbers; and the names of all that the corpus then has.

    Raises:
        InputError: a corpus that does not record its sources, and it cannot be known which of them are given.
    """
    known = list(corpus.sources) or _recovered(corpus, out, sources, named=named)
    found = []
    for source in sources:
        index = next((i for i, there in enumerate(known) if there.name == source.name), len(known))
        if index == len(known):
            known.append(SourceName(name=source.name, prefix=f"{source.name}/"))
        found.append(CorpusSource(source=source, index=index, prefix=known[index].prefix))
    return tuple(sorted(found, key=lambda source: source.index)), tuple(known)


def _recovered(corpus: Corpus, out: Location, sources: Sequence[Source], *, named: bool) -> list[SourceName]:
    """The sources of shards of an early version: by the paths in the manifest where there were several."""
    seen: dict[int, str] = {}
    for index, path in open_manifest(out, corpus).source_paths():
        seen.setdefault(index, path.partition("/")[0])
    if max(seen) > 0:
        return [SourceName(name=seen.get(i, ""), prefix=f"{seen.get(i, '')}/") for i in range(max(seen) + 1)]
    if named:
        return [SourceName(name=corpus.name)]
    if len(sources) == 1:
        return [SourceName(name=sources[0].name)]
    raise InputError(
        "these shards do not record what their source was called",
        code="sources-not-recorded",
        where=out,
        found=", ".join(source.name for source in sources),
        hint=f"name the source that they were made of {typed(corpus.name)}, as in {typed(corpus.name)}=PATH, and others otherwise",
    )
