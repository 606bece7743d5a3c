"""Owns the names of models and weights that users type: for which role, what looks like a file, what was perhaps meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from ...storage_schemas.near_names import did_you_mean, near_names

#: Which model is named; options and errors carry it (`--teacher-pretrained`, `--student-pretrained`).
Role = Literal["teacher", "student"]

#: Prefix of names of timm models; everything else is open_clip's spelling.
TIMM_PREFIX = "timm:"

#: Prefix of names of transformers' image models: a folder, or a repository of the hub.
TRANSFORMERS_PREFIX = "transformers:"

#: Prefix of `--teacher` that names a function of the user's own: MODULE:FACTORY.
PYTHON_PREFIX = "python:"

#: Prefixes of open_clip's spelling for a model in a local folder, and for one on the hub.
LOCAL_PREFIX, HUB_PREFIX = "local-dir:", "hf-hub:"

#: Prefix of `--student` that names a decoder of a teacher's maps.
DECODER_PREFIX = "decoder:"

#: Prefix of `--teacher` that names a folder of learned prompts.
PROMPTS_PREFIX = "teachonce:"

#: Prefix of `--teacher` that names a finished student.
BUNDLE_PREFIX = "bundle:"

#: `--…-pretrained` for seeded random weights: for tests and benchmarks, or a student that starts from nothing.
RANDOM = "random"


def unknown_name(what: str, name: str, known: Sequence[str], hint: str, *, code: str) -> InputError:
    """The error for a misspelt model or tag, with the nearest names."""
    return InputError(what, code=code, where=name, hint=did_you_mean(name, known, hint))


def without_prefix_error(name: str, known: Sequence[str], hint: str, *, role: Role) -> InputError:
    """The error for a name that open_clip does not have: what stands before its colon may be misspelt."""
    before, colon, rest = name.partition(":")
    own = [PROMPTS_PREFIX, BUNDLE_PREFIX, TRANSFORMERS_PREFIX, PYTHON_PREFIX] if role == "teacher" else [DECODER_PREFIX]
    prefixes = [TIMM_PREFIX, LOCAL_PREFIX, HUB_PREFIX, *own]
    near = [f"{prefix}{rest}" for prefix in near_names(before + colon, prefixes)] if colon else []
    if near:
        return InputError(
            "open_clip has no such model",
            code="model-unknown",
            where=name,
            hint=f"did you mean {', '.join(near)}?",
        )
    return unknown_name("open_clip has no such model", name, known, hint, code="model-unknown")


def one_of(tags: Sequence[str]) -> str:
    """What `--…-pretrained` may be, for hints."""
    return f"one of {', '.join(tags)}, or a weights file" if tags else "a weights file"


def weights_file(path: str, role: Role, hint: str) -> str:
    """The name of a weights file that a user named.

    Raises:
        InputError: there is none.
    """
    location = UserFile.of(path)
    if not location.is_file():  # a pipe or a device would never end
        raise InputError(
            "no such file of weights", code="weights-missing", where=f"--{role}-pretrained {path}", hint=hint
        )
    return location.name


def loaded_text(name: str, weights: str, digest: str, *facts: str) -> str:
    """The line on what was loaded; facts that are '' are left out."""
    return f"{name}: {', '.join(filter(None, (f'weights {weights}', f'digest {digest[:12]}', *facts)))}"
