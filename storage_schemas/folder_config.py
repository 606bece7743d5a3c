"""Owns `config.json`, which makes a folder a student bundle or one of prompts: kind, version, seal, files beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from . import SCHEMA_VERSION
from .errors import DamagedError, MismatchError
from .fingerprint import Json
from .json_file import as_schema, read_json, seal, unseal

Config = TypeVar("Config")


def sealed_config(kind: str, fields: Mapping[str, Json]) -> bytes:
    """Indented JSON of the fields with kind and version, sealed with its digest; byte-identical for equal fields."""
    plain = json.loads(json.dumps({"kind": kind, "schema_version": SCHEMA_VERSION, **fields}, default=_plain))
    return json.dumps(seal(plain), indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _plain(value: Any) -> Json:
    if isinstance(value, Mapping):  # a mapping that is no dict
        return dict(value)
    raise TypeError(f"no JSON: {value!r}")


def read_config(
    data: bytes, kind: str, schema: type[Config], *, called: str, where: object, hint: str
) -> Config:
    """What `sealed_config` wrote, by its schema. `called` is what errors call such a folder.

    Raises:
        DamagedError: not such a config, or one that changed since it was written.
        MismatchError: of another version, or another kind of folder.
    """
    what = f"not {called}"
    fields = read_json(data, dict[str, Any], what=what, where=where, hint=hint)
    if "kind" not in fields:
        raise DamagedError(what, where=where, expected=f"kind: {kind}", found="no kind", hint=hint)
    # Before the seal: another version may seal in another way.
    if (fields["kind"], fields.get("schema_version")) != (kind, SCHEMA_VERSION):
        raise MismatchError(
            f"{called} of another version, or something else", where=where, expected=f"{kind} {SCHEMA_VERSION}",
            found=f"{fields['kind']} {fields.get('schema_version')}", hint=hint,
        )  # fmt: skip
    return as_schema(unseal(fields, where=where, hint=hint), schema, what=what, where=where, hint=hint)


def file_digest(data: bytes) -> str:
    """sha256 of a file beside the config, in hexadecimal, as `sha256sum` gives it."""
    return hashlib.sha256(data).hexdigest()


def check_file(data: bytes, name: str, files: Mapping[str, str] | None, *, where: object, hint: str) -> None:
    """Compare a file with what the config beside it says of it. Configs of early versions say nothing.

    Raises:
        DamagedError: it is another file, or it changed since it was written.
    """
    if files is None:
        return
    expected, found = files.get(name), file_digest(data)
    if found != expected:
        raise DamagedError(
            f"{name} is not the file that its config.json was written with", where=where,
            expected=f"sha256 {expected}", found=found, hint=hint,
        )  # fmt: skip
