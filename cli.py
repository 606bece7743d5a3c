"""The `teachonce` command: the group of its commands, and how errors are shown. Heavy imports wait for the command."""

from __future__ import annotations

import os
from typing import Any

import click

from . import __version__
from .commands.anomalies import anomalies
from .commands.benchmark import benchmark
from .commands.cache import cache
from .commands.captions import captions
from .commands.command import Subcommand
from .commands.datasets import datasets
from .commands.demo import demo
from .commands.distill import distill
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.import_checkpoint import import_checkpoint
from .commands.inspect import inspect
from .commands.labels import labels
from .commands.models import models
from .commands.plan import plan
from .commands.predict import predict
from .commands.pretrain import pretrain
from .commands.recode import recode
from .commands.retry_failed import retry_failed
from .commands.run import run_file
from .commands.shard import shard
from .commands.status import status
from .commands.submit import submit
from .commands.vectors import vectors
from .commands.verify import verify
from .pipeline import interrupt, stopping
from .pipeline.terminal import clear, say
from .storage_schemas.errors import InputError, Stopped, TeachonceError

#: In the order of the work, as `--help` lists them.
COMMANDS = (
    shard,
    retry_failed,
    datasets,
    models,
    plan,
    pretrain,
    vectors,
    cache,
    captions,
    recode,
    import_checkpoint,
    labels,
    distill,
    inspect,
    verify,
    status,
    evaluate,
    predict,
    anomalies,
    export,
    run_file,
    submit,
    demo,
    benchmark,
)


class Program(click.Group):
    """Turns the errors that a user can act on into one line and an exit code; bugs keep their traceback."""

    command_class = Subcommand

    def invoke(self, ctx: click.Context) -> Any:
        with interrupt.work():
            try:
                _require_working_folder()
                return super().invoke(ctx)
            except BaseException as error:
                clear()
                shown = _as_click_error(error, self.commands.get(str(ctx.invoked_subcommand)))
                if shown is error:
                    raise
                raise shown from error
            finally:
                clear()
                stopping.disarm()


def _require_working_folder() -> None:
    """Libraries ask for it as they are imported, Ray as it starts, and say odd things."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError as error:
        raise InputError(
            "the working folder has been deleted",
            code="working-folder-deleted",
            hint="cd to one that is there",
        ) from error


def _as_click_error(error: BaseException, command: click.Command | None) -> BaseException:
    """One line for what a user can act on; itself for what is a bug, or no error."""
    if isinstance(error, KeyboardInterrupt) or interrupt.happened():
        only_looks = command is not None and all(p.name not in ("out", "file") for p in command.params)
        by_ctrl_c = interrupt.exit_code() == interrupt.EXIT_CODE
        brief = only_looks and by_ctrl_c and not isinstance(command, click.Group)
        say("Interrupted." if brief else interrupt.end_line())
        interrupt.mark_line_printed()
        return click.exceptions.Exit(interrupt.exit_code())
    if isinstance(error, Stopped):
        say(stopping.line())
        return click.exceptions.Exit(stopping.EXIT_CODE)
    if isinstance(error, TeachonceError):
        if stopping.asked():  # such as a process of Ray that the same signal has ended
            say(f"{error.line}\n{stopping.line()}")
            return click.exceptions.Exit(stopping.EXIT_CODE)
        return click.ClickException(error.line)
    if isinstance(error, OSError):
        from .pipeline.storage import as_storage_error

        clear = as_storage_error(error)
        return error if clear is None else click.ClickException(clear.line)
    return error


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="teachonce")
def main() -> None:
    """Run an expensive teacher once, store its outputs, train any number of students from them.

    The stages, in order: shard, vectors, cache, distill, evaluate. Every command can be stopped at any moment;
    the same command resumes. Data goes to stdout, progress to stderr.
    """
    # torch's threads spin while they wait for each other, which costs dearly where others (loader processes, a
    # second worker) want the cores: steps took up to five times as long. It counts before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


for command in COMMANDS:
    main.add_command(command)
