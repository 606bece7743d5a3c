"""`teachonce demo`: runs every stage on small images by its own command, and reports the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...pipeline.command_runner import Runner
from ...pipeline.storage import Location
from ...storage_schemas.fingerprint import Json
from . import folder
from .folder import DemoSize, prepare
from .report import facts_of_demo

#: Boxes keep half of an image or more and are never mirrored: digits must stay digits.
VIEWS: Mapping[str, Any] = {"view_scale": "0.5,1", "view_flip": 0}

#: Chosen on the validation drawings.
PROMPT_OPTIONS: Mapping[str, Any] = {"optimizer": "adamw", "lr": 0.01, "schedule": "cosine", "batch_size": 64}
STUDENT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "promptkd": {"optimizer": "adamw", "lr": 0.01, "schedule": "cosine", "prompt_depth": 4},
    "kd": {"lr": 0.002},
}

#: Where small things run: not worth a worker of their own.
HERE = ("--executor", "serial")


def run_demo(out: str, runner: Runner, size: DemoSize | None = None) -> dict[str, Json]:
    """Run the demo in the folder `out`, or what is left of it, and return the results.

    Raises:
        InputError, MismatchError: the folder holds something else, or another version's demo.
        MissingDependency: mlxtend is not installed.
        TeachonceError: whatever a stage raises.
    """
    size = size or DemoSize()
    root = Location.of(out)
    prepare(root, size, runner.say)
    tune(root, size, runner)
    teach(root, size, runner)
    train(root, size, runner)
    question(root, size, runner)
    return facts_of_demo(root, runner)


def tune(root: Location, size: DemoSize, runner: Runner) -> None:
    """The teacher's prompts, learned on a few labelled images of the base classes."""
    runner.say("\nTune the teacher's prompts on a few labelled images of the base classes.")
    runner.run(
        "pretrain",
        root / folder.SHOTS,
        teacher=model(root, folder.TEACHER),
        classes=root / folder.CLASSES,
        base_classes=root / folder.BASE_CLASSES,
        shots=size.shots,
        **PROMPT_OPTIONS,
        epochs=size.prompts_epochs,
        **VIEWS,
        out=root / folder.PROMPTS,
    )


def teach(root: Location, size: DemoSize, runner: Runner) -> None:
    """Shards, class vectors, and the teacher's only look at the images that students train on."""
    shards, targets, teacher = root / folder.SHARDS, root / folder.TARGETS, tuned(root)
    runner.say("\nPack the images into tars, and run the teacher once over some views of each.")
    runner.run("shard", root / folder.IMAGES, shard_size=size.shard_size, out=shards, where=runner.where)
    runner.run("vectors", teacher=teacher, check=root / folder.SHOTS, out=targets)
    runner.run("cache", shards, teacher=teacher, views=size.views, **VIEWS, out=targets, where=runner.where)
    runner.leave()


def train(root: Location, size: DemoSize, runner: Runner) -> None:
    """Two students from the store."""
    shards, targets, student = root / folder.SHARDS, root / folder.TARGETS, model(root, folder.STUDENT)
    epochs = {"promptkd": size.promptkd_epochs, "kd": size.kd_epochs}
    # No processes that decode: training takes two cores, and starting one takes longer than it would save.
    for recipe, trained_parts in (("promptkd", "prompts and projector"), ("kd", "all of it")):
        settings = {**STUDENT_OPTIONS[recipe], "epochs": epochs[recipe], "batch_size": size.batch_size}
        runner.say(f"\nTrain a student ({trained_parts}) from the store; no teacher is loaded.")
        runner.run(
            "distill", shards, targets, student=student, recipe=recipe, **settings, decode_workers=0, out=root / recipe
        )


def question(root: Location, size: DemoSize, runner: Runner) -> None:
    """Outputs of the teacher, tuned and not, and of the untrained student for the held-out images, by their own class vectors."""
    shards = root / folder.HELD_OUT_SHARDS
    runner.say("\nRun the teacher, tuned and not, and the untrained student on the held-out images.")
    runner.run("shard", root / folder.HELD_OUT, shard_size=size.shard_size, out=shards, where=HERE)
    for teacher, store in (
        (tuned(root), folder.HELD_OUT_TARGETS),
        (model(root, folder.TEACHER), folder.HELD_OUT_TEACHER),
        (model(root, folder.STUDENT), folder.HELD_OUT_STUDENT),
    ):
        runner.run("vectors", teacher=teacher, classes=root / folder.CLASSES, out=root / store)
        runner.run("cache", shards, teacher=teacher, precision="fp32", out=root / store, where=HERE)


def model(root: Location, name: str) -> str:
    """What `--teacher` and `--student` take for a model in the demo's folder."""
    return f"local-dir:{root / name}"


def tuned(root: Location) -> str:
    """What `--teacher` takes for the teacher with its prompts."""
    return f"teachonce:{root / folder.PROMPTS}"
