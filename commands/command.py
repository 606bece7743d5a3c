"""Owns what all commands share: how their arguments are read, and the sections of `--help`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..stages.models.settings import COMPUTING, PREPROCESSING

if TYPE_CHECKING:
    from click.types import OptionHelpExtra

#: Where a path begins in an argument of a command line: at once, behind `=`, or behind the prefix of a model in a folder.
_HOME = re.compile(r"^((?:[^~/]*[=:]|[^~]*(?:coop|mvtec|aitex|tilda):[^=~]*=)?)~(?=/|$)")

#: The first section of `--help`, what most people need; and the last ones. What belongs to one command stands between.
COMMON = "Options"
WHERE = "Where units of work run"
FILES = "Where files lie"
LAST = (PREPROCESSING, COMPUTING, WHERE, FILES)

Command = TypeVar("Command", bound=Callable[..., Any])


class Option(click.Option):
    """An option in a section of `--help`; `shown` is its default as text, where click would not show it."""

    def __init__(self, *declarations: Any, section: str = COMMON, shown: str = "", **attributes: Any) -> None:
        super().__init__(*declarations, **attributes)
        self.section = section
        self.shown = shown

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        extra = super().get_help_extra(ctx)
        if self.shown:
            extra["default"] = self.shown
        return extra


#: `click.option` for options that no settings class describes.
option = functools.partial(click.option, cls=Option)


class Subcommand(click.Command):
    """A command whose options stand in sections, the common ones first. All have those of where files lie.

    Its arguments may begin with `~` where a shell leaves it: in `--out=~/x`, `NAME=~/x`, run files.
    """

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params.append(
            Option(
                ["--endpoint"],
                metavar="URL",
                expose_value=False,
                callback=_use_endpoint,
                section=FILES,
                shown="AWS_ENDPOINT_URL",
                help="Server of s3:// URLs that is not AWS, such as http://127.0.0.1:9000.",
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [expand_homes(word) for word in args])

    def sections(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        """Of each section of `--help`: an option's names, and what it means."""
        sections: dict[str, list[tuple[str, str]]] = {COMMON: []}
        for parameter in self.get_params(ctx):
            record = None if isinstance(parameter, click.Argument) else parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(parameter, "section", COMMON), []).append(record)
        return dict(sorted(sections.items(), key=lambda item: LAST.index(item[0]) if item[0] in LAST else -1))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, records in self.sections(ctx).items():
            with formatter.section(section):
                formatter.write_dl(records)


def _use_endpoint(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        from ..pipeline.storage import s3_endpoint

        ctx.with_resource(s3_endpoint(value))


#: `click.command` for commands of this program.
command = functools.partial(click.command, cls=Subcommand)


def expand_homes(word: str) -> str:
    """An argument of a command line with `~` expanded, wherever in it a path begins."""
    from ..pipeline.storage import expand_home

    return _HOME.sub(lambda found: found[1] + expand_home("~"), word)
