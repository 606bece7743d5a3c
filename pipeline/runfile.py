"""Owns run files: one YAML file that describes the stages of a whole run, as the commands and options that they are.

executor: ray            # executor, ray_address and workers here hold for every stage that takes them
submit: {slurm: {slices: 16, time: "04:00:00"}}     # for `teachonce submit slurm`
stages:
  - shard:   {corpus: [photos], out: shards}
  - vectors: {teacher: ViT-L-14, teacher-pretrained: openai, classes: classes.txt, out: targets.zarr}
  - cache:   {shards: shards, teacher: ViT-L-14, teacher-pretrained: openai, views: 4, out: targets.zarr}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..storage_schemas.errors import InputError
from ..storage_schemas.near_names import did_you_mean
from .storage import missing_hint
from .user_files import UserFile

#: Keys beside `stages`: defaults for every stage that has such an option.
DEFAULTS = ("executor", "ray_address", "workers")

#: A section of options for `teachonce submit`, by the scheduler's name.
SUBMIT = "submit"


@dataclass(frozen=True, kw_only=True)
class StageCall:
    """One entry of `stages`: a command's name, its options and arguments by name (underscores), and where it stands."""

    command: str
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """A run file's content; paths in it are relative to the folder that it lies in.

    Attributes:
        submit: options of `teachonce submit` by name (underscores), for each scheduler that the file names.
    """

    stages: tuple[StageCall, ...]
    defaults: Mapping[str, Any]
    submit: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_runfile(location: UserFile) -> RunFile:
    """Read and check a run file's shape; its commands and options are checked by the commands.

    Raises:
        InputError: missing, not YAML, or of another shape; names the place.
    """
    if not location.exists() or location.is_dir():
        raise InputError(
            "no such run file",
            code="run-file-missing",
            where=location,
            hint=missing_hint(location, "check the path"),
        )
    try:
        content = yaml.safe_load(location.read_bytes())
    except (yaml.YAMLError, ValueError) as error:  # an impossible date is a ValueError
        raise InputError("not a YAML file", code="run-file-malformed", where=f"{location}: {error}") from error
    except RecursionError as error:
        raise InputError(
            "not a run file: it is nested too deeply", code="run-file-malformed", where=location
        ) from error
    example = "stages: [{shard: {corpus: photos, out: shards}}]"
    if not isinstance(content, dict) or not isinstance(content.get("stages"), list) or not content["stages"]:
        raise InputError(
            "a run file needs a list of stages",
            code="run-file-without-stages",
            where=location,
            hint=f"for example `{example}`",
        )
    defaults = {_underscored(k): v for k, v in content.items() if k not in ("stages", SUBMIT)}
    for name in defaults:
        if name not in DEFAULTS:
            raise InputError(
                "unknown key in a run file",
                code="run-file-key-unknown",
                where=f"{location}: {name}",
                expected=", ".join(("stages", *DEFAULTS, SUBMIT)),
                found=name,
                hint=did_you_mean(name, ("stages", *DEFAULTS, SUBMIT), "") or None,
            )
    stages = tuple(_stage(item, f"{location}, stage {i}") for i, item in enumerate(content["stages"], 1))
    return RunFile(stages=stages, defaults=defaults, submit=_submit(content.get(SUBMIT), f"{location}: {SUBMIT}"))


def _submit(section: Any, where: str) -> dict[str, dict[str, Any]]:
    section = {} if section is None else section
    if not isinstance(section, dict) or not all(isinstance(options, dict) for options in section.values()):
        raise InputError(
            "options for `teachonce submit` are given for each scheduler",
            code="run-file-submit-malformed",
            where=where,
            expected="SCHEDULER: {OPTION: VALUE}",
            found=section,
        )
    return {str(name): {_underscored(k): v for k, v in options.items()} for name, options in section.items()}


def _stage(item: Any, where: str) -> StageCall:
    if not isinstance(item, dict) or len(item) != 1:
        raise InputError(
            "a stage is one command with its options",
            code="run-file-stage-malformed",
            where=where,
            expected="COMMAND: {OPTION: VALUE}",
            found=item,
        )
    ((command, options),) = item.items()
    if not isinstance(options, dict | None):
        raise InputError(
            "a stage's options are a mapping",
            code="run-file-options-malformed",
            where=f"{where} ({command})",
            found=options,
        )
    named = {_underscored(k): v for k, v in (options or {}).items()}
    return StageCall(command=str(command), options=named, where=f"{where} ({command})")


def _underscored(name: Any) -> str:
    return str(name).replace("-", "_")
