"""`teachonce vectors`, on the command line."""

from __future__ import annotations

from typing import Any

import click

from ..pipeline.terminal import say
from .command import Stage, one_driver
from .executor import executor_options, make_executor
from .options import split_teacher_options, teacher_options
from .output import json_option, report


@click.command(cls=Stage)
@teacher_options
@click.option(
    "--classes",
    help="Class list: a file (one name a line, or a JSON list), `imagenet`, `coop:NAME=DATA` for a data set's, "
    "or a folder of shards for its labels. Not needed where the teacher has classes of its own.",
)
@click.option(
    "--templates",
    help="Prompt templates: a file, `openai-imagenet` or `simple-imagenet` (default: 'a photo of a {}.').",
)
@click.option(
    "--base-classes",
    metavar="FILE|NAMES|@half",
    help="Mark base classes, the others being novel: a file with one name a line, names with commas between them, or "
    "@half for the first half (default: those that the teacher's prompts were learned on).",
)
@click.option(
    "--check",
    metavar="IMAGES",
    help="Labelled images to try the vectors on: refused if they are no better than guessing, or if learned prompts do "
    "half as well as none.",
)
@click.option("--out", required=True, type=click.Path(), help="Target store.")
@executor_options("serial")
@json_option
@one_driver
def vectors(
    out: str, classes: str | None, templates: str | None, base_classes: str | None, check: str | None, executor: str, ray_address: str | None,
    workers: int | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Compute class vectors: text features of class names, or the rows of a classifier's head."""
    from ..pipeline.runner import run_stage
    from ..stages.models.compute import resolve_compute
    from ..stages.vectors import plan_vectors

    config = split_teacher_options(options)
    if options["precision"] == "auto":
        options["precision"] = "fp32"  # it is done once
    stage = plan_vectors(
        config, out=out, classes=classes, templates=templates, base=base_classes, check=check,
        compute=resolve_compute(**options, elsewhere=executor == "ray"),
    )  # fmt: skip
    for note in stage.notes:
        say(f"vectors: {note}")
    report(run_stage(stage, stage.store, make_executor(executor, ray_address, workers)), stage.store, as_json)
