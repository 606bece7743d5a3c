"""Owns the names of models and weights that users type: who asks, what looks like a file, what was perhaps meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError

#: Which model is named; options and errors carry it (`--teacher-pretrained`, `--student-pretrained`).
Role = Literal["teacher", "student"]

#: Prefix of names of timm models; everything else is open_clip's spelling.
TIMM_PREFIX = "timm:"

#: Prefixes of open_clip's spelling for a model in a local folder, and for one on the hub.
LOCAL_PREFIX, HUB_PREFIX = "local-dir:", "hf-hub:"

#: `--…-pretrained` for seeded random weights: for tests and benchmarks, or a student that starts from nothing.
RANDOM = "random"


def unknown_name(what: str, name: str, known: Sequence[str], hint: str) -> InputError:
    """The error for a misspelt model or tag, with the nearest names."""
    near = near_names(name, known)
    return InputError(what, where=name, hint=f"did you mean {', '.join(near)}?" if near else hint)


def one_of(tags: Sequence[str]) -> str:
    """What `--…-pretrained` may be, for hints."""
    return f"one of {', '.join(tags)}, or a weights file" if tags else "a weights file"


def weights_file(path: str, role: Role, hint: str) -> str:
    """The name of a weights file that a user named.

    Raises:
        InputError: there is none.
    """
    location = Location.of(path)
    if not location.path.is_file():  # a pipe or a device would never end
        raise InputError("no such file of weights", where=f"--{role}-pretrained {path}", hint=hint)
    return location.name


def loaded_text(name: str, weights: str, digest: str, *facts: str) -> str:
    """The line that says what was loaded; facts that are '' are left out."""
    return f"{name}: {', '.join(filter(None, (f'weights {weights}', f'digest {digest[:12]}', *facts)))}"


def near_names(name: str, known: Sequence[str]) -> list[str]:
    """Up to three names that `name` may have meant, the nearest first; case and separators count little."""
    plain: dict[str, str] = {}
    for other in known:
        plain.setdefault(_plain(other), other)
    return [plain[near] for near in difflib.get_close_matches(_plain(name), list(plain), n=3, cutoff=0.6)]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace("/", "-")
