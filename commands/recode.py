"""`teachonce recode`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say
from ..stages.settings.recode import RecodeSettings
from .command import command, option
from .executor import ExecutorSettings
from .one_driver import driving
from .options import options_of
from .output import json_option, report


@command()
@click.argument("store", type=click.Path())
@option("--out", required=True, type=click.Path(), help="The new store.")
@options_of("settings", RecodeSettings)
@json_option
@options_of("executor", ExecutorSettings)
def recode(store: str, out: str, settings: RecodeSettings, executor: ExecutorSettings, as_json: bool) -> None:
    """Make another store of a finished one, without the teacher: smaller, of other classes, or of a part of it.

    STORE is a target store that `teachonce cache` finished. It is only read.
    """
    with driving(out, "recode", (store, settings.classes_from), form="recode STORE"):
        from ..pipeline.runner import run_stage
        from ..stages.recode import plan_recode

        stage = plan_recode(store, out=out, settings=settings)
        for note in stage.notes:
            say(f"recode: {note}")
        report(run_stage(stage, stage.out, executor.make()), stage.out, as_json)
