"""`teachonce import`, on the command line."""

from __future__ import annotations

from typing import Any

import click

from ..pipeline.terminal import say
from .command import Stage, one_driver
from .output import json_option, print_json, report
from .types import Choice


@click.command("import", cls=Stage)
@click.argument("checkpoint", type=click.Path())
@click.option(
    "--teacher",
    help="PromptSRC: the open_clip model that it was trained with (ViT-L-14, hf-hub:…, local-dir:…).",
)
@click.option(
    "--teacher-pretrained", help="PromptSRC: that model's weights: a pretrained tag (openai) or a path."
)
@click.option(
    "--classes",
    help="PromptSRC: all classes, base and novel: a file (one name a line, or a JSON list), `imagenet`, `coop:NAME=DATA`, or "
    "a folder of shards.",
)
@click.option(
    "--base-classes",
    metavar="FILE|NAMES|@half",
    help="PromptSRC: the classes that it was trained on (default: those whose texts are in the file; all where it has none).",
)
@click.option("--context", help="PromptSRC: words that its text prompts start from (a photo of a).")
@click.option(
    "--weights",
    type=Choice(["checkpoint", "backbone"]),
    help="PromptSRC: whose frozen weights to use: the file's, which its authors ran, or the model's (checkpoint).",
)
@click.option(
    "--student", help="PromptKD: the open_clip model that the student was trained from (ViT-B-16, …)."
)
@click.option(
    "--student-pretrained", help="PromptKD: that model's weights: a pretrained tag (openai) or a path."
)
@click.option("--vectors", type=click.Path(), help="PromptKD: the store with its teacher's class vectors.")
@click.option(
    "--out", required=True, type=click.Path(), help="Folder for the prompts, or for the student bundle."
)
@json_option
@one_driver
def import_checkpoint(
    checkpoint: str, teacher: str | None, teacher_pretrained: str | None, base_classes: str | None, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Bring a checkpoint of PromptSRC's or PromptKD's authors here.

    CHECKPOINT is a file that their trainers wrote, such as VLPromptLearner/model.pth.tar-20; nothing in it is run. A
    PromptSRC teacher becomes a folder for --teacher teachonce:FOLDER; a PromptKD student becomes a bundle for
    `evaluate`, `predict`, or your own code. Every key is accounted for, or the file is refused.
    """
    from ..pipeline.executors.serial import SerialExecutor
    from ..pipeline.runner import run_stage
    from ..stages.import_checkpoint import plan_import
    from ..stages.published.report import found_text
    from ..stages.teachers import TeacherConfig

    config = None if teacher is None else TeacherConfig.of(teacher, teacher_pretrained)
    stage = plan_import(checkpoint, teacher=config, base=base_classes, **options)
    summary = run_stage(stage, stage.out, SerialExecutor(), progress=False)
    if as_json:
        print_json({"out": str(stage.out), **summary.__dict__, "checkpoint": stage.found.to_json()})
        return
    say(found_text(stage.found))
    for note in stage.found.notes:
        say(f"import: {note}")
    report(summary, stage.out, as_json)
