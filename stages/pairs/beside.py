"""Owns where the stores of further teachers lie: whole stores of their own in the folder `teachers` of a store."""

from __future__ import annotations

import re

from ...pipeline.contents import Kind, is_target_store, kind_of
from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from ...storage_schemas.target_store import open_root

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


def teachers_beside(store: Location) -> dict[str, Location]:
    """The stores of other teachers, by name, in bytewise order of the names."""
    folder = store / TEACHERS
    return {name: folder / name for name in folder.names() if is_target_store(folder / name)}
