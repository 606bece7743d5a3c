"""`teachonce run`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say
from ..storage_schemas.errors import InputError
from ..storage_schemas.near_names import did_you_mean
from .command import command
from .file_options import as_arguments, first_unknown, names_of
from .output import json_option
from .student_options import check_file


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
    from .run_inputs import RunInputs

    location, inputs = UserFile.of(file), RunInputs()
    runfile = read_runfile(location)
    program = ctx.find_root().command
    assert isinstance(program, click.Group)
    commands = {n: c for n, c in program.commands.items() if not isinstance(c, click.Group) and c is not run_file}
    with contextlib.chdir(location.path.parent):
        calls = []
        for stage in runfile.stages:
            command = commands.get(stage.command)
            if command is None:
                hint = did_you_mean(stage.command, commands, f"one of {', '.join(sorted(commands))}")
                raise InputError("unknown stage", code="run-file-stage-unknown", where=stage.where, hint=hint)
            unknown = first_unknown(stage.options, names_of(command, ctx))
            if unknown is not None:
                raise InputError(
                    "a stage has no such option",
                    code="run-file-option-unknown",
                    where=stage.where,
                    found=unknown[0],
                    hint=unknown[1] or f"teachonce {stage.command} --help",
                )
            takes = {p.name for p in command.params}
            options = {**{k: v for k, v in runfile.defaults.items() if k in takes}, **stage.options}
            if as_json and any("--json" in p.opts for p in command.params):
                options["json"] = True
            positional = [p.name for p in command.params if isinstance(p, click.Argument) and p.name]
            try:
                argv = as_arguments(options, positional)
                calls.append(command.make_context(stage.command, argv, parent=ctx))
            except click.UsageError as error:
                raise InputError(
                    "a stage's options are wrong",
                    code="run-file-options-wrong",
                    where=stage.where,
                    found=error.format_message().rstrip("."),
                    hint=f"teachonce {stage.command} --help",
                ) from error
            inputs.check(stage.command, calls[-1].params, stage.where)
            for where, params in check_file(calls[-1]):
                inputs.check(stage.command, params, f"{stage.where}: {where}")
        for number, call in enumerate(calls, 1):
            say(f"[{number}/{len(calls)}] {call.info_name}")
            with call:
                call.command.invoke(call)
