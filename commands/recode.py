"""`teachonce recode`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say
from ..stages.settings.recode import RecodeSettings, output_form
from .command import command, option
from .executor import ExecutorSettings
from .log_option import log_option
from .one_driver import driving
from .options import options_of
from .output import json_option, report


@command()
@click.argument("store", type=click.Path())
@option("--out", required=True, type=click.Path(), help="The new store; or with --to, a folder for files.")
@options_of("settings", RecodeSettings)
@json_option
@log_option
@options_of("executor", ExecutorSettings)
def recode(store: str, out: str, settings: RecodeSettings, executor: ExecutorSettings, as_json: bool) -> None:
    """Make another store of a finished one, or files for other programs, without the teacher.

    STORE is a target store that `teachonce cache` finished. It is only read.
    """
    with driving(out, "recode", (store, settings.classes_from), form=output_form(settings)):
        from ..pipeline.runner import run_stage
        from ..stages.recode import plan_recode

        stage = plan_recode(store, out=out, settings=settings)
        for note in stage.notes:
            say(f"recode: {note}")
        report(run_stage(stage, stage.out, executor.make()), stage.out, as_json)
