"""`teachonce import`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say
from ..stages.settings.import_checkpoint import ImportSettings
from .command import command, option
from .one_driver import one_driver
from .options import options_of
from .output import json_option, print_json, report


@command("import")
@click.argument("checkpoint", type=click.Path())
@option("--out", required=True, type=click.Path(), help="Folder for the prompts, or for the student bundle.")
@options_of("settings", ImportSettings)
@json_option
@one_driver
def import_checkpoint(checkpoint: str, out: str, settings: ImportSettings, as_json: bool) -> None:
    """Convert a checkpoint that the code of PromptSRC's or PromptKD's authors wrote.

    CHECKPOINT is a file that their trainers wrote, such as VLPromptLearner/model.pth.tar-20; nothing in it is run. A
    PromptSRC teacher becomes a folder for --teacher teachonce:FOLDER; a PromptKD student becomes a bundle for
    `evaluate`, `predict`, or your own code. Every key is accounted for, or the file is refused.
    """
    from ..pipeline.executors.serial import SerialExecutor
    from ..pipeline.runner import run_stage
    from ..stages.import_checkpoint import plan_import
    from ..stages.published.report import contents_text

    stage = plan_import(checkpoint, out=out, settings=settings)
    summary = run_stage(stage, stage.out, SerialExecutor(), progress=False)
    if as_json:
        print_json({"out": str(stage.out), **summary.__dict__, "checkpoint": stage.found.to_json()})
        return
    say(contents_text(stage.found))
    for note in stage.found.notes:
        say(f"import: {note}")
    report(summary, stage.out, as_json)
