"""Owns reading our own JSON: against its schema, and against the digest that was written into it.

A schema is a dataclass; msgspec compares types with it, and names the place of another one. Files of ours may come from
an untrusted source, so nothing in them is taken on trust: neither types, nor depth, nor what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from .errors import DamagedError
from .fingerprint import Json, digest_json

Schema = TypeVar("Schema")

#: Where a sealed object carries the digest of everything else in it.
SEAL = "seal"

#: A whole number from 1 to 2^53 (what every reader of JSON can hold).
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]

#: A whole number from 0 to 2^53.
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


def read_json(data: bytes, schema: type[Schema], *, what: str, code: str, where: object, hint: str) -> Schema:
    """Bytes of JSON as an object of `schema`. Fields that it does not have are ignored.

    Args:
        data: the bytes.
        schema: a dataclass, or a type of JSON such as `dict[str, Any]`.
        what, code, where, hint: of the error.

    Raises:
        DamagedError: not JSON, nested too deeply, or of other types; `found` names the place.
    """
    try:
        return msgspec.json.decode(data, type=schema)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DamagedError(what, code=code, where=where, found=_brief(error), hint=hint) from error


def as_schema(value: Json, schema: type[Schema], *, what: str, code: str, where: object, hint: str) -> Schema:
    """The same for JSON that is parsed already.

    Raises:
        DamagedError: of other types; `found` names the place.
    """
    try:
        return msgspec.convert(value, schema)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DamagedError(what, code=code, where=where, found=_brief(error), hint=hint) from error


def seal(fields: Mapping[str, Json]) -> dict[str, Json]:
    """The fields, and beside them the digest (blake2b-128, hexadecimal) of their canonical JSON."""
    return {**fields, SEAL: digest_json(dict(fields))}


def unseal(fields: Mapping[str, Json], *, where: object, hint: str, strict: bool = False) -> dict[str, Json]:
    """What `seal` was given.

    Args:
        strict: whether there must be a digest. Else objects without one pass: earlier versions wrote them so.

    Raises:
        DamagedError: something in it changed since.
    """
    rest = {name: value for name, value in fields.items() if name != SEAL}
    if (strict or SEAL in fields) and fields.get(SEAL) != (found := digest_json(rest)):
        raise DamagedError(
            "a description that changed since it was written",
            code="description-changed",
            where=f"{where}: field '{SEAL}'",
            expected=fields.get(SEAL),
            found=found,
            hint=hint,
        )
    return rest


def as_sealed(
    value: Json,
    schema: type[Schema],
    *,
    what: str,
    code: str,
    where: object,
    hint: str,
    strict: bool = False,
) -> Schema:
    """A sealed object that is parsed already, by its schema; what is no object is read as one without fields.

    Args:
        strict: see `unseal`.

    Raises:
        DamagedError: no such object, or one that changed since it was sealed.
    """
    fields = unseal(value if isinstance(value, dict) else {}, where=where, hint=hint, strict=strict)
    return as_schema(fields, schema, what=what, code=code, where=where, hint=hint)


def read_sealed(
    data: bytes,
    schema: type[Schema],
    *,
    what: str,
    code: str,
    where: object,
    hint: str,
    strict: bool = False,
) -> Schema:
    """The same for bytes of JSON."""
    fields = read_json(data, dict[str, Any], what=what, code=code, where=where, hint=hint)
    return as_sealed(fields, schema, what=what, code=code, where=where, hint=hint, strict=strict)


def _brief(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "JSON that is nested too deeply"
    return " ".join(str(error).split())
