"""Owns the demo's report: accuracies, agreement, times and sizes; as JSON and as a table."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping
from typing import Any

from ...pipeline.command_runner import Runner
from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...pipeline.tables import bytes_text, seconds_text, section, table
from ...storage_schemas.fingerprint import Json, canonical_json
from ...storage_schemas.json_file import read_json
from ..evaluate import evaluate
from ..measures.stored import Stored
from ..measures.stored_accuracy import stored_accuracy
from ..measures.training_time import training_time
from ..models.compute import resolve_compute
from ..models.settings import ComputeSettings
from ..reports.evaluate_text import evaluation_json
from ..settings.evaluate import EvaluateSettings
from . import folder

#: Rows of the table. Models whose outputs are in stores: the store, the model's name, and the folder of its training here.
_ASKED = (
    (folder.HELD_OUT_TEACHER, "teacher, zero-shot", None),
    (folder.HELD_OUT_TARGETS, "teacher, prompt-tuned", folder.PROMPTS),
    (folder.HELD_OUT_STUDENT, "student, zero-shot", None),
)
#: Students: the bundle, and its name.
_STUDENTS = (
    (folder.PROMPTKD, "student, promptkd"),
    (folder.KD, "student, kd"),
)


def facts_of_demo(root: Location, runner: Runner) -> dict[str, Json]:
    """Measure every student on the held-out images, unless that is done, and gather all facts."""
    runner.say("\nMeasure the students on the held-out images.")
    shards, base = root / folder.HELD_OUT_SHARDS, str(root / folder.BASE_CLASSES)
    models: list[dict[str, Json]] = []
    for store, name, trained in _ASKED:
        teacher = root / folder.HELD_OUT_TARGETS
        measured = evaluation_json(stored_accuracy(shards, root / store, base=base, teacher=teacher))
        training = {} if trained is None else {"training": _training(root / trained, "pretrain")}
        models.append({"model": name, "store": str(root / store), **_brief(measured), **training})
    for bundle, name in _STUDENTS:
        models.append(
            {
                "model": name,
                "bundle": str(root / bundle),
                **_brief(_measured(root, bundle, runner)),
                "training": _training(root / bundle, "distill"),
            }
        )
    return {
        "folder": str(root),
        "store": _store(root / folder.TARGETS),
        "models": models,
        "next": _next(root, runner),
    }


def facts_text(facts: Mapping[str, Any]) -> str:
    """What `facts_of_demo` returned, for a terminal."""
    rows = []
    for model in facts["models"]:
        training = model.get("training")
        rows.append(
            [
                model["model"],
                _percent(model["base"]),
                _percent(model["novel"]),
                _percent(model["harmonic_mean"]),
                _percent(model["agreement"]),
                f"{training['seconds']:.1f} s" if training else "",
            ]
        )
    head = ("", "base %", "novel %", "harmonic mean %", "as teacher %", "training")
    store, images = facts["store"], facts["models"][0]["images"]
    notes = [
        f"Store: {', '.join(store['targets'])} of {store['samples']} images in {store['views']} views, "
        f"{bytes_text(store['bytes'])}.",
        f"The teacher took {seconds_text(store['teacher_seconds'])} for it, once for any number of students.",
    ]
    return "\n\n".join(
        [
            section(f"On {images} held-out images (± standard error)", table(rows, head=head, align="lrrrrr")),
            "\n".join(notes),
            section("Next, type:", *(f"  {command}" for command in facts["next"])),
        ]
    )


def _measured(root: Location, bundle: str, runner: Runner) -> Json:
    """The result of `evaluate` for a student, kept with the digest of the student that it holds for."""
    student, images = root / bundle, root / folder.HELD_OUT_SHARDS
    store, base = root / folder.HELD_OUT_TARGETS, root / folder.BASE_CLASSES
    receipt = Ledger(student, "distill").receipt("student")
    assert receipt is not None  # it has just been trained
    kept = root / folder.RESULTS / f"{bundle}.json"
    if kept.exists():
        found = read_json(
            kept.read_bytes(),
            dict[str, Any],
            what="not a note of results",
            code="results-note-malformed",
            where=kept,
            hint=f"rm {shlex.quote(str(kept))}",
        )
        if found.get("student") == receipt.digest:
            return found["measured"]
    runner.say(f"$ {runner.line('evaluate', student, images, '--store', store, '--base-classes', base)}")
    compute = resolve_compute(ComputeSettings(precision="fp32"))
    result = evaluate(
        str(student),
        str(images),
        settings=EvaluateSettings(store=str(store), base_classes=str(base)),
        compute=compute,
    )
    measured = evaluation_json(result)
    kept.write_bytes(canonical_json({"student": receipt.digest, "measured": measured}) + b"\n")
    return measured


def _brief(measured: Mapping[str, Any]) -> dict[str, Json]:
    split = measured["base_novel"]
    return {
        "images": measured["images"]["usable"],
        "base": split["base"],
        "novel": split["novel"],
        "harmonic_mean": split["harmonic_mean"],
        "agreement": measured["agreement"]["top1"],
    }


def _training(out: Location, stage: str) -> dict[str, Json]:
    time = training_time(out, stage)
    assert time is not None  # it has just been trained
    return {"seconds": time.seconds, "steps": time.steps, "batch_size": time.batch_size}


def _store(store: Location) -> dict[str, Json]:
    stored = Stored.open(store)
    return {
        "path": str(store),
        "samples": stored.rows.num_samples,
        "views": stored.rows.num_views,
        "targets": [target.name for target in stored.rows.targets],
        "bytes": sum(array.nbytes_stored() for _, array in stored.root.arrays()),
        "teacher_seconds": sum(ledger.timings()["forward"] for ledger in stored.receipts.ledgers),
    }


def _next(root: Location, runner: Runner) -> list[str]:
    """Commands that show more."""
    image = folder.example_image(root)
    commands = [
        runner.line("inspect", root / folder.TARGETS),
        runner.line("inspect", root / folder.TARGETS, "00000.png"),
        runner.line("status", root),
        runner.line("predict", root / folder.PROMPTKD, image),
    ]
    if importlib.util.find_spec("tensorboard"):
        commands.append(runner.tool("tensorboard", "--logdir", root))
    return commands


def _percent(value: Mapping[str, Any]) -> str:
    rate = value["rate"] if "rate" in value else value["mean"]
    return f"{100 * rate:.1f} ± {100 * value['stderr']:.1f}"
