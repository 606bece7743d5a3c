"""Owns `config.json`, which makes a folder a student bundle or one of prompts: kind, version, seal, files beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import DamagedError
from .fingerprint import Json
from .formats import Format
from .json_file import as_sealed, read_json, seal

Config = TypeVar("Config")


def sealed_config(format_: Format, fields: Mapping[str, Json]) -> bytes:
    """Indented JSON of the fields with kind and version, sealed with its digest; byte-identical for equal fields."""
    about = {"kind": format_.kind, "schema_version": format_.version}
    plain = json.loads(json.dumps({**about, **fields}, default=_plain))
    return json.dumps(seal(plain), indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _plain(value: Any) -> Json:
    if isinstance(value, Mapping):  # a mapping that is no dict
        return dict(value)
    raise TypeError(f"no JSON: {value!r}")


def read_config(data: bytes, format_: Format, schema: type[Config], *, where: object, hint: str) -> Config:
    """What `sealed_config` wrote, by its schema.

    Raises:
        DamagedError: not such a config, or one that changed since it was written.
        MismatchError: of a version that cannot be read here.
    """
    what = f"not {format_.name}"
    fields = read_json(data, dict[str, Any], what=what, code="config-malformed", where=where, hint=hint)
    kind = fields.get("kind")
    if kind != format_.kind:
        raise DamagedError(
            what,
            code="config-malformed",
            where=where,
            expected=f"kind: {format_.kind}",
            found=f"kind: {kind}",
            hint=hint,
        )
    # Before the seal: another version may seal in another way.
    format_.check(fields.get("schema_version"), where=where, hint=hint)
    return as_sealed(fields, schema, what=what, code="config-malformed", where=where, hint=hint)


def file_digest(data: bytes) -> str:
    """sha256 of a file beside the config, in hexadecimal, as `sha256sum` gives it."""
    return hashlib.sha256(data).hexdigest()


def check_file(data: bytes, name: str, files: Mapping[str, str] | None, *, where: object, hint: str) -> None:
    """Compare a file with its entry in the config beside it. Configs of early versions have no such entry.

    Raises:
        DamagedError: it is another file, or it changed since it was written.
    """
    if files is None:
        return
    expected, found = files.get(name), file_digest(data)
    if found != expected:
        raise DamagedError(
            f"{name} is not the file that its config.json was written with",
            code="config-file-changed",
            where=where,
            expected=f"sha256 {expected}",
            found=found,
            hint=hint,
        )
