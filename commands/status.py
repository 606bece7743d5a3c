"""`teachonce status`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import show
from .command import command
from .output import json_option, print_json


@command()
@click.argument("path", type=click.Path())
@json_option
def status(path: str, as_json: bool) -> None:
    """How far each stage got, how fast, and where its time went.

    PATH is a folder of shards, of prompts, of students, a target store, a student bundle, or a run folder that holds some
    of these.

    Exits with 0 if everything is done, 3 if units are left, 4 if units failed (and 1 on an error).
    """
    from ..stages.status import exit_code, folder_status, status_text

    facts = folder_status(path)
    if as_json:
        print_json(facts)
    else:
        show(status_text(facts))
    click.get_current_context().exit(exit_code(facts))
