"""Owns the stages of a run file as calls of commands: each checked as on the command line, before any of them starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from ..storage_schemas.errors import InputError
from ..storage_schemas.near_names import did_you_mean
from .file_options import as_arguments, first_unknown, names_of
from .run_inputs import RunInputs
from .student_options import check_file

if TYPE_CHECKING:
    from ..pipeline.runfile import RunFile, StageCall


@dataclass(frozen=True, kw_only=True)
class Call:
    """One stage.

    Attributes:
        context: with the values of all options.
        argv: its options and arguments as on the command line.
        own_argv: the same without what the file says of all stages.
    """

    context: click.Context
    argv: tuple[str, ...]
    own_argv: tuple[str, ...]

    @property
    def command(self) -> str:
        return str(self.context.info_name)


def calls_of(
    ctx: click.Context, runfile: RunFile, *, as_json: bool = False, inputs: RunInputs | None = None
) -> list[Call]:
    """Check all stages; relative paths start at the working folder.

    Args:
        ctx: of the command that reads the run file, which is no stage itself.
        as_json: each stage that reports gets --json.
        inputs: what looks whether they are there; None where the stages run in another place than this.

    Raises:
        InputError: a stage, an option, a value or an input that cannot be.
    """
    return [_call(ctx, stage, runfile, as_json, inputs) for stage in runfile.stages]


def _call(ctx: click.Context, stage: StageCall, runfile: RunFile, as_json: bool, inputs: RunInputs | None) -> Call:
    program = ctx.find_root().command
    assert isinstance(program, click.Group)
    others = {n: c for n, c in program.commands.items() if not isinstance(c, click.Group) and n != "run"}
    command = others.get(stage.command)
    if command is None:
        hint = did_you_mean(stage.command, others, f"one of {', '.join(sorted(others))}")
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
    argv = as_arguments(options, positional)
    try:
        context = command.make_context(stage.command, list(argv), parent=ctx)
    except click.UsageError as error:
        raise InputError(
            "a stage's options are wrong",
            code="run-file-options-wrong",
            where=stage.where,
            found=error.format_message().rstrip("."),
            hint=f"teachonce {stage.command} --help",
        ) from error
    if inputs is not None:
        inputs.check(stage.command, context.params, stage.where)
        for where, params in check_file(context):
            inputs.check(stage.command, params, f"{stage.where}: {where}")
    own = {name: value for name, value in options.items() if name in stage.options or name not in runfile.defaults}
    return Call(context=context, argv=tuple(argv), own_argv=tuple(as_arguments(own, positional)))
