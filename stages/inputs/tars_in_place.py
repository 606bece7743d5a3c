"""Owns what a user may name to be used in place: tars, folders of tars and patterns, here or in a bucket."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from ...pipeline.storage import Location, missing_hint
from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from ...storage_schemas.plain_text import counted, typed
from ..corpora.reading import unreachable
from ..corpora.spelling import is_dataset
from ..corpora.tar_in_place import TarInPlace
from ..corpora.tars import is_tar
from ..samples.kind import SampleKind
from .sources import source_named_twice, spelled_out

#: Tars that are looked at together: each costs a bucket a request.
_AT_ONCE = 16

_ENDING = ".tar"
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")


def open_tars_in_place(arguments: Sequence[str], *, kind: SampleKind) -> tuple[TarInPlace, ...]:
    """The tars that CORPUS arguments name, in bytewise order of their names. They are looked at, not read.

    A tar is called as its file without `.tar`; one of a pattern or a folder that was given a name: `NAME/FILE`.

    Raises:
        InputError: one is missing, compressed or no tar; two have the same name; a folder without tars.
        Unreachable: one cannot be looked at at the moment.
    """
    named = [(name or Location.of(what).name.removesuffix(_ENDING), what) for name, what in _spelled(arguments)]
    try:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            found = list(threads.map(lambda one: Location.of(one[1]).stat(), named))
    except OSError as error:
        raise unreachable(named[0][1], error.strerror or error) from error
    missing = [what for (_, what), stat in zip(named, found, strict=True) if stat is None]
    if missing:
        first = Location.of(missing[0])
        raise InputError(
            "no such corpus" if len(named) == 1 else f"{len(missing)} of {counted(len(named), 'tar')} are not there",
            code="corpus-missing",
            where=first if len(missing) == 1 else f"the first is {first}",
            hint=missing_hint(first, "check the names"),
        )
    tars: dict[str, TarInPlace] = {}
    extensions = kind.extensions()
    for (name, what), stat in zip(named, found, strict=True):
        assert stat is not None
        location = Location.of(what)
        _check(location, is_folder=stat.is_folder)
        if name in tars:
            raise source_named_twice(name)
        tars[name] = TarInPlace(
            name=name, location=location, size=stat.size, version=stat.version, extensions=extensions
        )
    return tuple(tars[name] for name in sorted(tars, key=lambda n: n.encode() + b"/"))


def _spelled(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, path) of each tar; folders that were named themselves are listed."""
    for given, what, is_own in spelled_out(arguments):
        if is_dataset(what):
            raise _no_tar(what, "a data set")
        if what.endswith(_ENDING) or not is_own or not Location.of(what).is_dir():
            yield given, what
            continue
        names = sorted(name for name in Location.of(what).entries() if name.endswith(_ENDING) and name[0] != ".")
        if not names:
            raise InputError(
                "a folder without tars",
                code="folder-without-tars",
                where=what,
                expected="NAME.tar in it",
                found=_instead(Location.of(what).names()),
                hint="name the folder that holds the tars themselves, or leave out --in-place",
            )
        for name in names:
            path = f"{what.rstrip('/')}/{name}"
            yield (f"{given}/{name.removesuffix(_ENDING)}" if given else ""), path


def _instead(names: Collection[str]) -> str:
    first = min(names, default="")
    return f"{counted(len(names), 'entry')}, the first is {first}" if names else "nothing"


def _check(location: Location, *, is_folder: bool) -> None:
    name = location.name.lower()
    if is_folder:
        raise _no_tar(location, "a folder")
    if name.endswith(_COMPRESSED):
        raise InputError(
            "a compressed tar cannot be used in place: nothing in it can be read without all that is before it",
            code="tar-compressed",
            where=location,
            hint="unpack it, and name what comes out",
        )
    if location.local_path() is not None:
        file = UserFile.of(location.address)
        file.check_is_file()
        is_right = is_tar(file)
    else:
        is_right = _ENDING in name
    if not is_right:
        raise _no_tar(location, "another file")


def _no_tar(where: object, found: str) -> InputError:
    return InputError(
        "only tars can be used in place",
        code="in-place-needs-tars",
        where=where,
        expected="NAME.tar, a folder of tars, or a pattern such as {000..999}.tar",
        found=found,
        hint=f"leave out --in-place to copy it: teachonce shard {typed(str(where))} --out …",
    )
