"""Owns the attributes by which a small Zarr store says what it is: its kind, its version, and its sealed description."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import zarr

from .errors import MismatchError
from .formats import Format
from .json_file import seal

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def describe(root: zarr.Group, format_: Format, attribute: str, spec: DataclassInstance) -> None:
    """Give a group its kind, its version and, under the name of an attribute, its description."""
    kind = {"kind": format_.kind, "schema_version": format_.version}
    root.attrs.update({"teachonce": kind, attribute: seal(asdict(spec))})


def check_kind(root: zarr.Group, format_: Format, *, what: str, code: str, where: object, hint: str) -> None:
    """Refuse a group of another kind, or one of a version that cannot be read.

    Args:
        what, code: of the error for another kind; its `expected` is what the command of the kind's name writes.
        hint: for a version that is too old.

    Raises:
        MismatchError: it is one.
    """
    found: Any = root.attrs.asdict().get("teachonce")
    if not isinstance(found, dict) or found.get("kind") != format_.kind:
        raise MismatchError(
            what,
            code=code,
            where=where,
            expected=f"{format_.kind} of `teachonce {format_.kind}`",
            found=f"a {found['kind']}" if isinstance(found, dict) and "kind" in found else "another Zarr group",
        )
    format_.check(found.get("schema_version"), where=where, hint=hint)
