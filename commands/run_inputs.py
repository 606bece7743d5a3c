"""Owns what commands read, by the names of their arguments and options: a run is checked for it before it starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..pipeline.contents import Kind, how_to_make, how_to_shard, kind_of, made_by
from ..pipeline.storage import Location, is_url
from ..stages.corpora.patterns import is_pattern
from ..stages.corpora.spelling import is_dataset, split_generation, split_name
from ..stages.models.names import BUNDLE_PREFIX, LOCAL_PREFIX, PROMPTS_PREFIX
from ..stages.models.weights import looks_like_path
from ..storage_schemas.errors import InputError
from ..storage_schemas.near_names import did_you_mean

#: Folders that another stage makes.
_MADE = {
    "shards": Kind.SHARDS,
    "store": Kind.STORE,
    "stores": Kind.STORE,
    "vectors": Kind.STORE,
    "classes_from": Kind.STORE,
    "bundle": Kind.BUNDLE,
    "against": Kind.BUNDLE,
    "labels": Kind.LABELS,
    "captions": Kind.CAPTIONS,
}

#: Images in any form; lists of names, each with the values that are no file; models, and files of their weights.
_IMAGES = {"from", "corpus", "images", "validation", "check", "masks"}
_LISTS = {"classes": ("imagenet",), "templates": ("openai-imagenet", "simple-imagenet")}
_NAMES = {"base_classes"}
_NAMED_STORES = {"also"}
_MODELS = {"teacher", "student", "teacher_backbone"}
_WEIGHTS = {"teacher_pretrained", "student_pretrained"}

#: Plain files and folders.
_PATHS = {"checkpoint", "data", "path", "prompts", "samples", "student_run", "students"}

#: All names that this module knows.
KNOWN = {*_MADE, *_IMAGES, *_LISTS, *_NAMES, *_NAMED_STORES, *_MODELS, *_WEIGHTS, *_PATHS}

_COMMANDS = {
    Kind.STORE: "teachonce cache SHARDS --teacher …",
    Kind.BUNDLE: "teachonce distill SHARDS STORE --student …",
    Kind.LABELS: "teachonce labels STORE --classes N",
    Kind.CAPTIONS: "teachonce captions SHARDS --from TABLE --teacher …",
}


class RunInputs:
    """What the stages of a run read: it must be there, or be written by an earlier one."""

    def __init__(self) -> None:
        self._made: dict[Location, Kind | None] = {}

    def check(self, command: str, values: Mapping[str, Any], where: str) -> None:
        """Look at one stage; they come in their order.

        Args:
            command: its name.
            values: of its arguments and options, by name; relative paths start at the working folder.
            where: names the stage in errors.

        Raises:
            InputError: something that it reads is not there, and no earlier stage writes it; or it is of another kind.
        """
        for name, value in values.items():
            for one in value if isinstance(value, list | tuple) else (value,):
                for path, kind in _paths(name, one) if isinstance(one, str) else ():
                    self._check_one(Location.of(path), kind, f"{where}: {name.replace('_', '-')}")
        if isinstance(out := values.get("out"), str):
            self._made[Location.of(out)] = made_by(command)

    def _check_one(self, location: Location, kind: Kind | None, where: str) -> None:
        if location in self._made:
            made = self._made[location]
            if None not in (made, kind) and made != kind:
                raise InputError(
                    "a stage reads another kind of folder",
                    code="run-file-input-other-kind",
                    where=where,
                    expected=kind,
                    found=f"{location}, {made}",
                    hint="name the --out of the stage that makes it",
                )
            return
        if any(made in location.parents or (kind is None and location in made.parents) for made in self._made):
            return  # in the output of an earlier stage, or around it
        found = kind_of(location)
        if found == Kind.NOTHING:
            raise InputError(
                "a stage reads what is not there",
                code="run-file-input-missing",
                where=where,
                expected=f"{kind or 'a file or a folder'}, or the --out of an earlier stage",
                found=f"no {location}",
                hint=did_you_mean(str(location), [*map(str, self._made), *location.near()], "check the path"),
            )
        if kind is not None and found != kind:
            hint = (
                how_to_shard(location)
                if kind == Kind.SHARDS
                else how_to_make(location, _COMMANDS.get(kind, "teachonce pretrain"))
            )
            raise InputError(
                "a stage reads another kind of folder",
                code="run-file-input-other-kind",
                where=where,
                expected=kind,
                found=f"{location}, {found}",
                hint=hint,
            )


def _paths(name: str, value: str) -> Iterator[tuple[str, Kind | None]]:
    """Paths in the value of one argument or option, each with the kind that it must be of; None for any."""
    if name in _MADE:
        yield split_generation(value)[0] if name == "labels" else value, _MADE[name]
    elif name in _PATHS:
        yield value, None
    elif name in _IMAGES:
        what = split_name(value)[1]
        if not is_url(what) and not what.startswith("pipe:") and (is_dataset(what) or not is_pattern(what)):
            yield what.partition("=")[2] if is_dataset(what) else what, None
    elif name in _LISTS and value not in _LISTS[name]:
        yield value.partition("=")[2] if is_dataset(value) else value, None
    elif name in _NAMES and "," not in value and ("/" in value or value.endswith((".txt", ".json", ".csv"))):
        yield value, None
    elif name in _NAMED_STORES and "=" in value:
        yield value.partition("=")[2], Kind.STORE
    elif name in _MODELS and value.startswith((LOCAL_PREFIX, PROMPTS_PREFIX, BUNDLE_PREFIX)):
        kinds = {PROMPTS_PREFIX: Kind.PROMPTS, BUNDLE_PREFIX: Kind.BUNDLE}
        prefix, colon, place = value.partition(":")
        yield place, kinds.get(prefix + colon)
    elif name in _WEIGHTS and looks_like_path(value):
        yield value, None
