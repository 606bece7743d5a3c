"""Owns what a user may bring as a corpus: folders, tars (plain or WebDataset), lists of paths or URLs, and data sets."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from ...pipeline.storage import Location, is_url, missing_hint
from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from ...storage_schemas.plain_text import typed
from ..corpora.coop.source import open_split
from ..corpora.defects.spelled import open_defects
from ..corpora.far import FarFile, FarFolderSource
from ..corpora.folder import FolderSource
from ..corpora.images import MAX_BYTES
from ..corpora.lists import ListSource
from ..corpora.patterns import is_pattern, matched
from ..corpora.reading import unreachable
from ..corpora.source import Source
from ..corpora.spelling import has_classes, is_dataset, split_name
from ..corpora.tars import TarSource, is_tar
from ..samples.images import IMAGES
from ..samples.kind import SampleKind


def open_sources(
    arguments: Sequence[str], *, kind: SampleKind = IMAGES, max_bytes: int = MAX_BYTES
) -> tuple[Source, ...]:
    """The sources that CORPUS arguments name, in bytewise order of their names.

    Args:
        arguments: each `PATH`, a pattern of paths, or `coop:NAME/SPLIT=DATA` (`mvtec:`, `aitex:`, `tilda:`) for a split of a data set, or one of these after `NAME=`.
        kind: of samples to look for in folders and tars; lists name any files, data sets hold images.
        max_bytes: what a URL of a list may hold.

    Raises:
        InputError: one is missing or of no known kind, or two have the same name.
        Unreachable: one cannot be looked at at the moment.
    """
    sources: dict[str, Source] = {}
    for given, what, _ in spelled_out(arguments):
        try:
            source = _open_source(given, what, kind.extensions(), max_bytes)
        except OSError as error:
            raise unreachable(what, error.strerror or error) from error
        if source.name in sources:
            raise source_named_twice(source.name)
        sources[source.name] = source
    return tuple(sources[name] for name in sorted(sources, key=lambda n: n.encode() + b"/"))


def open_source(argument: str, *, kind: SampleKind = IMAGES) -> Source:
    """`open_sources` of an argument that must name one source alone.

    Raises:
        InputError: a pattern of several.
    """
    sources = open_sources([argument], kind=kind)
    if len(sources) > 1:
        raise InputError(
            "a pattern names several corpora where one is wanted",
            code="corpus-not-one",
            where=argument,
            found=", ".join(source.name for source in sources[:3]) + (", …" if len(sources) > 3 else ""),
            hint="name one, or shards that are made of them: teachonce shard … --in-place",
        )
    return sources[0]


def spelled_out(arguments: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """(name, what) of each CORPUS argument, and of each file that a pattern stands for; the name is '' where none was given.

    The third is whether the user typed it so; else it comes of a pattern.

    Raises:
        InputError: as `patterns.matched`.
    """
    for argument in arguments:
        given, what = split_name(argument)
        if is_dataset(what) or not is_pattern(what):
            yield given, what, True
            continue
        for found in matched(what):
            yield (f"{given}/{found.name}" if given else found.name), found.path, False


def source_named_twice(name: str) -> InputError:
    """The error for two sources of one name."""
    return InputError(
        "two sources have the same name",
        code="source-name-twice",
        where=name,
        hint=f"name them apart: {typed(f'{name}-a')}=PATH {typed(f'{name}-b')}=PATH",
    )


def _open_source(given: str, rest: str, extensions: Collection[str], max_bytes: int) -> Source:
    if is_dataset(rest):
        return open_split(rest, name=given) if has_classes(rest) else open_defects(rest, name=given)
    if is_url(rest) and Location.of(rest).local_path() is None:
        return _open_far(given, Location.of(rest), extensions)
    location = UserFile.of(rest)
    if not location.exists():
        raise InputError(
            "no such corpus",
            code="corpus-missing",
            where=location,
            hint=missing_hint(location, "check the path"),
        )
    if location.is_dir():
        return FolderSource(name=given or location.name, root=location, extensions=extensions)
    name = given or location.name.partition(".")[0]
    if is_tar(location):
        location.check_is_file()  # it is read several times
        return TarSource(name=name, file=location, extensions=extensions)
    return ListSource(name=name, file=location, max_bytes=max_bytes)


def _open_far(given: str, location: Location, extensions: Collection[str]) -> Source:
    """A folder or a tar in a bucket."""
    found = location.stat()
    if found is None:
        raise InputError(
            "no such corpus", code="corpus-missing", where=location, hint=missing_hint(location, "check the URL")
        )
    if found.is_folder:
        return FarFolderSource(name=given or location.name or "bucket", root=location, extensions=extensions)
    if ".tar" not in location.name.lower():
        raise InputError(
            "in a bucket, a corpus is a folder or a tar",
            code="corpus-far-kind",
            where=location,
            expected="a folder of images, or NAME.tar",
            found="another file",
            hint="name a list on this machine; its rows may be URLs",
        )
    return TarSource(name=given or location.name.partition(".")[0], file=FarFile(location), extensions=extensions)
