"""`teachonce run`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say
from .command import command
from .output import json_option


@command("run")
@click.argument("file", type=click.Path(), metavar="FILE.yaml")
@json_option
@click.pass_context
def run_file(ctx: click.Context, file: str, as_json: bool) -> None:
    """Run the stages that a YAML file describes, skipping what is done.

    Each stage is a command of this program with its options; paths are relative to the file. All options, and
    whether all inputs are there, are checked before the first stage starts. See docs/run-files.md. With --json each stage prints a document.
    """
    import contextlib

    from ..pipeline.runfile import read_runfile
    from ..pipeline.user_files import UserFile
    from .run_calls import calls_of
    from .run_inputs import RunInputs

    location = UserFile.of(file)
    runfile = read_runfile(location)
    with contextlib.chdir(location.path.parent):
        calls = [call.context for call in calls_of(ctx, runfile, as_json=as_json, inputs=RunInputs())]
        for number, call in enumerate(calls, 1):
            say(f"[{number}/{len(calls)}] {call.info_name}")
            with call:
                call.command.invoke(call)
