"""Owns options that a file gives by their names: checked against a command, and spelled as its command line."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import click

from ..pipeline.command_runner import to_argv
from ..storage_schemas.near_names import did_you_mean


def as_arguments(options: Mapping[str, Any], positional: Sequence[str]) -> list[str]:
    """The command line that is equal to options by name: options first, then the named positional arguments in their order."""
    given = [options[name] for name in positional if options.get(name) is not None]
    argv = [str(word) for value in given for word in (value if isinstance(value, list) else [value])]
    return [*to_argv(**{k: v for k, v in options.items() if k not in positional}), "--", *argv]


def names_of(command: click.Command, ctx: click.Context) -> set[str]:
    """What a file may call the arguments and options of a command."""
    params = command.get_params(click.Context(command, parent=ctx))
    known = {p.name or "" for p in params if isinstance(p, click.Argument)}
    return known | {name.lstrip("-") for p in params if isinstance(p, click.Option) for name in p.opts}


def first_unknown(options: Collection[str], known: Collection[str]) -> tuple[str, str] | None:
    """The first of these names that a command does not have, as it is spelled, and the nearest right one; None where all are right.

    Args:
        options: with underscores for hyphens.
        known: see `names_of`.
    """
    for key in options:
        spelled = key.replace("_", "-")
        if spelled not in known and key not in known:
            return spelled, did_you_mean(spelled, sorted(known), "")
    return None
