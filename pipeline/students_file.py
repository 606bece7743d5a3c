"""Owns the file of `distill --students`: names of students, each with options that replace those of the command line.

long:  {recipe: kd, epochs: 40}
small: {recipe: kd, student: "timm:mobilenetv3_small_100", seed: 2}
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any

import yaml

from ..storage_schemas.errors import InputError
from .contents import LEDGER, STUDENTS_NOTE
from .storage import missing_hint
from .user_files import UserFile

#: What a student may be called: its folder is.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_EXAMPLE = "for example `long: {epochs: 40}`"


class _Loader(yaml.SafeLoader):
    """YAML's plain types; a key that stands twice is an error, where YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_students(location: UserFile) -> Mapping[str, Mapping[str, Any]]:
    """Options of each student, by its name; names of options have underscores. The options are checked by the command.

    Raises:
        InputError: missing, not YAML, or of another shape; names the place.
    """
    if not location.is_file():
        raise InputError(
            "no such file of students",
            code="students-file-missing",
            where=location,
            hint=missing_hint(location, "check the path"),
        )
    try:
        content = yaml.load(location.read_bytes(), _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date is a ValueError
        raise _malformed("not a YAML file", location, found=" ".join(str(error).split())) from error
    if not isinstance(content, dict) or not content:
        raise _malformed("a file of students is a mapping", location, found=type(content).__name__)
    students = {}
    for name, options in content.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in (LEDGER, STUDENTS_NOTE):
            raise _malformed("a student's name must be good for a folder", location, found=name)
        if not isinstance(options, dict | None):
            raise _malformed("a student's options are a mapping", f"{location}, {name}", found=options)
        students[name] = {str(key).replace("-", "_"): value for key, value in (options or {}).items()}
    return students


def _malformed(what: str, where: object, *, found: object) -> InputError:
    return InputError(what, code="students-file-malformed", where=where, found=found, hint=_EXAMPLE)
