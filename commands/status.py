"""`teachonce status`, on the command line."""

from __future__ import annotations

from typing import Any

import click

from ..pipeline.terminal import show
from ..storage_schemas.errors import InputError
from .command import Subcommand, option
from .output import json_option, print_json
from .types import Finite
from .watch import SECONDS, watch


class _WatchCommand(Subcommand):
    """`--watch` takes the next word as its seconds only where that is a number: `status --watch FOLDER` names a folder."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        following = [*args[1:], ""]
        words = [
            f"--watch={SECONDS:g}" if word == "--watch" and not _is_number(after) else word
            for word, after in zip(args, following, strict=True)
        ]
        return super().parse_args(ctx, words)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@click.command(cls=_WatchCommand)
@click.argument("path", type=click.Path())
@option(
    "--watch",
    "seconds",
    type=Finite(0, None, min_open=True),
    metavar="[SECONDS]",
    help=f"Look again every so many seconds ({SECONDS:g}) until all is done; Ctrl-C ends it.",
)
@json_option
def status(path: str, seconds: float | None, as_json: bool) -> None:
    """How far each stage got, how fast, and where its time went.

    PATH is a folder of shards, of prompts, of students, a target store, a student bundle, or a run folder that holds some
    of these.

    Exits with 0 if everything is done, 3 if units are left, 4 if units failed (and 1 on an error).
    """
    from ..stages.status import exit_code, folder_status, status_text

    if seconds is not None:
        if as_json:
            raise InputError(
                "a report that is shown again and again is no JSON document",
                code="options-exclude-each-other",
                where="--json, --watch",
                hint="leave one out",
            )
        facts: dict[str, Any] = watch(lambda: folder_status(path), status_text, seconds)
    else:
        facts = folder_status(path)
        if as_json:
            print_json(facts)
        else:
            show(status_text(facts))
    click.get_current_context().exit(exit_code(facts))
