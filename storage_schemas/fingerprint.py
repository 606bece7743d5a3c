"""Owns fingerprints: named facts that decide the bytes of a result, their digest, and the refusal of others."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import MismatchError
from .plain_text import counted

#: A JSON value: what fingerprints, receipts and store attributes are made of.
Json = Any

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Json) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8, no NaN."""
    return _CANONICAL.encode(value).encode()


def digest_json(value: Json) -> str:
    """blake2b-128 of the canonical JSON, as 32 hexadecimal digits."""
    return hashlib.blake2b(canonical_json(value), digest_size=16).hexdigest()


def _flatten(fields: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    flat: dict[str, Json] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _brief(value: Json) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:50]}… ({len(text)} characters)"


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Named facts (a JSON object, nested where that reads better) that decide the bytes of a result."""

    fields: Mapping[str, Json]

    @functools.cached_property
    def digest(self) -> str:
        """blake2b-128 over all fields, as 32 hexadecimal digits."""
        return digest_json(dict(self.fields))

    def differences(self, found: Mapping[str, Json]) -> list[tuple[str, str, str]]:
        """Fields that differ from `found`, as (dotted name, expected, found); first those that both have, by name.

        The version of a format comes last: it follows from other fields, which say more to the person who chose them.
        """
        own_fields, found_fields = _flatten(self.fields), _flatten(found)
        names = sorted(
            own_fields.keys() | found_fields.keys(),
            key=lambda n: (n == "schema_version", n not in own_fields or n not in found_fields, n),
        )
        return [
            (
                name,
                _brief(own_fields[name]) if name in own_fields else "nothing",
                _brief(found_fields[name]) if name in found_fields else "nothing",
            )
            for name in names
            if name not in own_fields or name not in found_fields or own_fields[name] != found_fields[name]
        ]

    def check(
        self,
        found: Mapping[str, Json],
        *,
        what: str,
        code: str,
        where: object,
        hint: str,
        whose: tuple[str, str],
    ) -> None:
        """Refuse `found` unless all of its fields equal these.

        Args:
            found: the other fields.
            what, code, where, hint: of the error.
            whose: what these fields are of, and what the others are of, as in ("this command", "the folder").

        Raises:
            MismatchError: naming the first differing field, both values, and how many more differ.
        """
        differences = self.differences(found)
        if differences:
            name, expected, other = differences[0]
            more = f" (and {counted(len(differences) - 1, 'more field')})" if len(differences) > 1 else ""
            raise MismatchError(
                what,
                code=code,
                where=f"{where}: field '{name}'{more}",
                expected=f"{expected} ({whose[0]})",
                found=f"{other} ({whose[1]})",
                hint=hint,
            )
