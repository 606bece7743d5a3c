"""Owns where the stores of further teachers lie: whole stores of their own in the folder `teachers` of a store."""

from __future__ import annotations

import re

from ...pipeline.contents import Kind, is_target_store, kind_of
from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError, MismatchError
from ...storage_schemas.store_description import ATTRIBUTE
from ...storage_schemas.target_store import open_root
from ..corpora.shards import ShardSet
from .store import open_store, read_description

#: The group, within a store, of the stores beside it.
TEACHERS = "teachers"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def place_beside(store: Location | str, name: str, *, write: bool = True) -> Location:
    """Where the store of another teacher lies.

    Args:
        store: the first teacher's.
        name: of the other one, within the store.
        write: make the group that it lies in, so that Zarr knows the folder.

    Raises:
        InputError: no store there; or no name for a folder.
    """
    location = Location.of(store)
    if not _NAME.fullmatch(name):
        raise InputError(
            "no name for a teacher beside another one",
            code="beside-name",
            where="--beside",
            expected="letters, digits, and . _ - behind the first of them; 64 at most",
            found=name,
            hint="choose a short name, such as that of the model",
        )
    if not is_target_store(location):
        raise InputError(
            "there is no store that another teacher's could lie beside",
            code="beside-no-store",
            where=location,
            expected=Kind.STORE,
            found=kind_of(location),
            hint="give the first teacher's store as --out; or leave out --beside",
        )
    if write:
        open_root(location.zarr_store(), mode="a", where=location).require_group(TEACHERS)
    return location / TEACHERS / name


def refuse_other_corpus_beside(store: Location, shards: ShardSet) -> None:
    """Refuse other shards than those of the first teacher's store, where this is the place of one beside it.

    Raises:
        MismatchError: the first store has rows of other samples.
    """
    folder, first, *_ = [*store.parents, store, store]
    if folder.name != TEACHERS or not is_target_store(first):
        return
    root = open_store(first)
    if ATTRIBUTE not in root.attrs:
        return  # nothing but class vectors so far
    description = read_description(root, first)
    if shards.as_of(description.corpus_id) is None:
        raise MismatchError(
            "these are not the shards of the store that this teacher's is to lie beside",
            code="beside-other-corpus",
            where=f"{first}: field 'corpus_id'",
            expected=f"{description.corpus_id} (that store, made of {description.shards})",
            found=f"{shards.corpus.corpus_id} ({shards.location})",
            hint="give the shards that it was made of; or leave out --beside, and choose another --out",
        )


def teachers_beside(store: Location) -> dict[str, Location]:
    """The stores of other teachers, by name, in bytewise order of the names."""
    folder = store / TEACHERS
    return {name: folder / name for name in folder.names() if is_target_store(folder / name)}
