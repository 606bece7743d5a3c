"""Owns the answer to "what is this path": the kind of a file or folder, as text for errors, by what marks it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from enum import StrEnum
from itertools import islice
from typing import Any

from ..storage_schemas.errors import InputError
from ..storage_schemas.plain_text import typed
from .storage import Location

#: The folder of ledgers below a stage's output folder: `LEDGER/STAGE/`.
LEDGER = "ledger"

#: The lock that the one command which writes to an output holds, in `LEDGER`.
DRIVER = "driver.json"

#: The folder, in `LEDGER`, of the locks of commands that do a slice of the units each.
SLICES = "slices"

#: What a demo's and a benchmark's folder is known by, one of several students, and one of an export.
DEMO_NOTE, BENCHMARK_NOTE, STUDENTS_NOTE, EXPORT_NOTE = "demo.json", "benchmark.json", "students.json", "export.json"

#: Names by which a message distinguishes a folder of images from others; what `shard` reads is decided by Pillow.
_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}

#: So many files, this deep, are looked at to find out what a folder without a marker holds.
_LOOK_AT, _DEEP = 200, 3


class Kind(StrEnum):
    """What a path is; the value is the text for errors, as in "found …"."""

    NOTHING = "nothing"
    FILE = "a file"
    IMAGE = "an image"
    TAR = "a tar"
    EMPTY = "an empty folder"
    SHARDS = "a folder of shards"
    STORE = "a target store"
    PROMPTS = "a folder of prompts"
    BUNDLE = "a student bundle"
    LABELS = "labels of `teachonce labels`"
    CAPTIONS = "captions of `teachonce captions`"
    DEMO = "a folder of `teachonce demo`"
    BENCHMARK = "a folder of `teachonce benchmark`"
    STUDENTS = "a folder of students"
    EXPORT = "an export of `teachonce export`"
    ANOMALIES = "a folder of `teachonce anomalies`"
    ZARR = "a Zarr store that is not teachonce's"
    MODEL = "a model's folder"
    IMAGES = "a folder of images"
    TARS = "a folder of tars"
    OTHER = "a folder of other files"


#: What the stages make; `import` makes either of two, which its `config.json` distinguishes.
_MADE_BY = {
    "shard": Kind.SHARDS,
    "cache": Kind.STORE,
    "vectors": Kind.STORE,
    "labels": Kind.LABELS,
    "captions": Kind.CAPTIONS,
    "distill": Kind.BUNDLE,
    "anomalies": Kind.ANOMALIES,
    "pretrain": Kind.PROMPTS,
}


def made_by(command: str) -> Kind | None:
    """What a command's `--out` becomes; None for one that makes several kinds, or nothing."""
    return _MADE_BY.get(command)


def kind_of(location: Location) -> Kind:
    """What a path is: by the files that mark what teachonce makes, else by the names of the first files in it."""
    if not location.exists():
        return Kind.NOTHING
    if not location.is_dir():
        suffix = location.suffix
        return Kind.TAR if suffix == ".tar" else Kind.IMAGE if suffix in _IMAGES else Kind.FILE
    return _marked(location) or _by_names(location)


def is_shards(location: Location) -> bool:
    """Whether `corpus.json` marks this as a folder of shards, finished or not."""
    return "corpus_id" in _read_object(location / "corpus.json")


def is_target_store(location: Location) -> bool:
    """Whether `zarr.json` marks this as a target store, of whatever version."""
    return _zarr_kind(location) == "target store"


def _zarr_kind(location: Location) -> object:
    """What a Zarr group of ours says that it is."""
    marker = _as_object(_as_object(_read_object(location / "zarr.json").get("attributes")).get("teachonce"))
    return marker.get("kind")


def option(name: str, location: Location | str) -> str:
    """An option with a path, as a person types it."""
    return f"{name} {shlex.quote(str(location))}"


def free_name(location: Location, ending: str) -> Location:
    """A path beside this one that is not taken; below it where it is the working folder."""
    base = location / ending if str(location) == "." else location.sibling(f"{location.name}-{ending}")
    numbered = (base.sibling(f"{base.name}-{number}") for number in range(2, 1000))
    return base if not base.exists() else next((place for place in numbered if not place.exists()), base)


def refuse_swapped(command: str, first: object, second: object, *, is_first: Kind, is_second: Kind | None) -> None:
    """Refuse two folders that are each what the other should be.

    Args:
        command: that takes them, as in `distill`.
        first, second: as the user gave them; anything but a local path has none of these kinds.
        is_first: what the first should be.
        is_second: what the second should be; None where it may be anything else.

    Raises:
        InputError: with the command in the right order.
    """
    try:
        places = [Location.of(given if isinstance(given, Location) else str(given)) for given in (first, second)]
    except InputError:
        return  # a URL of no place
    if not all(place.exists() for place in places):
        return
    kinds = [kind_of(place) for place in places]
    if kinds[1] == is_first != kinds[0] and is_second in (None, kinds[0]):
        swapped = shlex.join([command, str(second), str(first)])
        raise InputError(
            "two folders are swapped",
            code="folders-swapped",
            where=f"{first} {second}",
            expected=f"{is_first} first",
            found=f"{kinds[0]} first, then {kinds[1]}",
            hint=f"teachonce {swapped} …",
        )


def how_to_shard(location: Location) -> str:
    """What to type next where a folder of shards was expected: never an `--out` onto what is there."""
    kind, out = kind_of(location), free_name(location, "shards")
    if kind in (Kind.NOTHING, Kind.EMPTY):
        return f"teachonce shard CORPUS {option('--out', location)}"
    if kind in (Kind.IMAGES, Kind.TARS, Kind.TAR):
        corpus = shlex.quote(str(location)) + ("/*.tar" if kind == Kind.TARS else "")
        return f"teachonce shard {corpus} {option('--out', out)}, then give {typed(out)}"
    return "give the folder that `teachonce shard` wrote"


def how_to_make(location: Location, command: str) -> str:
    """What to type next where the output of `command` was expected: it is written here only if nothing is here.

    Args:
        location: what was given.
        command: as in `teachonce cache SHARDS --teacher …`, without `--out`.
    """
    if kind_of(location) in (Kind.NOTHING, Kind.EMPTY):
        return f"{command} {option('--out', location)}"
    return f"give the folder that `{' '.join(command.split()[:2])}` wrote"


def _marked(folder: Location) -> Kind | None:
    """By the file that makes it complete, or by the ledger of the stage that began it."""
    if is_shards(folder):
        return Kind.SHARDS
    if is_target_store(folder):
        return Kind.STORE
    if (own := {"labels": Kind.LABELS, "captions": Kind.CAPTIONS}.get(str(_zarr_kind(folder)))) is not None:
        return own
    config = _read_object(folder / "config.json")
    if config.get("kind") == "student bundle":
        return Kind.BUNDLE
    if config.get("kind") == "prompts":
        return Kind.PROMPTS
    for name, kind in (
        (DEMO_NOTE, Kind.DEMO),
        (BENCHMARK_NOTE, Kind.BENCHMARK),
        (STUDENTS_NOTE, Kind.STUDENTS),
        (EXPORT_NOTE, Kind.EXPORT),
    ):
        if str(_read_object(folder / name).get("kind")).startswith("teachonce"):
            return kind
    for stage, kind in _MADE_BY.items():
        if (folder / LEDGER / stage / "plan.json").exists():
            return kind
    if any((folder / name).exists() for name in ("zarr.json", ".zgroup", ".zarray", ".zmetadata")):
        return Kind.ZARR
    if (folder / "open_clip_config.json").exists() or "architecture" in config or "model_type" in config:
        return Kind.MODEL
    return None


def _by_names(folder: Location) -> Kind:
    suffixes = [file.suffix for file in islice(_files(folder, _DEEP), _LOOK_AT)]
    if not suffixes:
        return Kind.EMPTY if next(folder.entries(), None) is None else Kind.OTHER
    images, tars = sum(s in _IMAGES for s in suffixes), suffixes.count(".tar")
    # An image may come with its label and its metadata.
    if 4 * max(images, tars) < len(suffixes):
        return Kind.OTHER
    return Kind.IMAGES if images >= tars else Kind.TARS


def _files(folder: Location, deep: int) -> Iterator[Location]:
    try:
        for name in folder.entries():
            if name.startswith("."):
                continue
            if not name.endswith("/"):
                yield folder / name
            elif deep:
                yield from _files(folder / name.rstrip("/"), deep - 1)
    except OSError:
        return  # a folder that cannot be read shows nothing


def _read_object(location: Location) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none."""
    if not location.is_file():
        return {}
    try:
        return _as_object(json.loads(location.read_bytes()))
    except (ValueError, RecursionError, OSError):
        return {}


def _as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
