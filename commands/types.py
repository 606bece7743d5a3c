"""Owns the types of options beside click's own: choices, names, finite numbers, several numbers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

import click

from ..pipeline.worker_range import WorkerRange
from ..storage_schemas.near_names import did_you_mean


class Choice(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """One of several choices; a misspelt one is answered with the nearest."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        near = did_you_mean(str(value), map(str, self.choices), "")
        return f"{super().get_invalid_choice_message(value, ctx)}{near and ' D' + near[1:]}"


class Names(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Words with commas between them. Others than those that are known may be right; one that is nearly known is not."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        for word in (part.strip() for part in str(value).split(",")):
            near = difflib.get_close_matches(word, self._known, n=1, cutoff=0.8)
            if near and word not in self._known:
                self.fail(f"{word!r} is unknown. Did you mean {near[0]!r}?", param, ctx)
        return str(value)


class Finite(click.FloatRange):
    """A finite number in a range. click's own type lets NaN pass, and infinity where the range has no end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class Workers(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A number of workers, or from how many to how many."""

    name = "workers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | WorkerRange:
        if isinstance(value, WorkerRange):
            return value
        if ".." not in str(value):
            number: int = click.IntRange(1).convert(value, param, ctx)
            return number
        return WorkerRange.parse(str(value)) or self.fail(
            f"{value!r} is not MIN..MAX, as 2..8, with a MAX of at least 1 and MIN.", param, ctx
        )


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Comma-separated numbers of one type: `count` of them, or as many as one likes."""

    name = "numbers"

    def __init__(self, each: click.FloatRange | click.IntRange, count: int | None = None) -> None:
        self.each: Any = each
        self.count = count

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if self.count not in (None, len(parts)):
            self.fail(f"{value!r} is not {self.count} numbers with commas between them", param, ctx)
        return tuple(self.each.convert(part, param, ctx) for part in parts)
