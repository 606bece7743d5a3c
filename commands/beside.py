"""Owns the option by which another teacher's store lies beside the first one's."""

from __future__ import annotations

import functools
from typing import Any

from .command import Command, option


def beside_option(command: Command) -> Command:
    """For commands that write a store: `--beside NAME` puts it into that at --out."""

    @option(
        "--beside",
        metavar="NAME",
        help="--out is the store of another teacher, and this one's lies beside it: in a store of its own, OUT/teachers/NAME.",
    )
    @functools.wraps(command)
    def placed(*arguments: Any, out: str, beside: str | None, **options: Any) -> None:
        if beside is not None:
            from ..stages.pairs.beside import place_beside

            out = str(place_beside(out, beside, write=not options.get("dry_run")))
        command(*arguments, out=out, **options)

    return placed  # type: ignore[return-value,no-any-return]
