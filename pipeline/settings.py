"""Owns settings: dataclass fields that declare their range, help and unit once, for options, run files, checks and docs."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from typing import Any

from ..storage_schemas.errors import InputError

#: Seeds that all random generators distinguish: torch's generator for the CPU looks at 32 bits, Python's takes -1 for 1.
LARGEST_SEED = 2**32 - 1

_KEY = "setting"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a field of a settings class declares, beside its type and default.

    Attributes:
        help: one sentence for `--help`, without the default, which stands there too.
        least, above: smallest value, and the value that it must be more than; None where there is no such end.
        most, below: the same of the other end.
        choices: the only values that it may have; empty for any.
        known: words of a list with commas, of which others may be right too: what is nearly one of these is a misspelling.
        unit: what a value is, in capitals, for `--help`: `STEPS`, `CLASSES`; '' for the type's own name.
        default_text: the default as text, where the field's own value does not show it.
        group: the section of `--help` that its option stands in; '' for the one that the command puts them in.
        option: its option behind the prefix, where that is not the field's name; '' for the prefix alone.
        no_prefix: whether its option has the same name in all commands, whatever the prefix of the others is.
        off: a value that means "none of that": it is left out of fingerprints. None where there is none.
        needs: the field beside it, and the values of that, without which it means nothing; None where there is no such field.
    """

    help: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    unit: str = ""
    default_text: str = ""
    group: str = ""
    option: str | None = None
    no_prefix: bool = False
    off: Any = None
    needs: tuple[str, tuple[str, ...]] | None = None

    def name(self, field: str, prefix: str = "") -> str:
        """Its option, spelled as a field: `teacher_size` is `--teacher-size`."""
        own = field if self.option is None else self.option
        return own if self.no_prefix else "_".join(filter(None, (prefix, own)))

    def expected(self, value: Any) -> str | None:
        """What was expected instead of a value that cannot be; None where it can."""
        if isinstance(value, (tuple, list)):
            return next((e for part in value if (e := self.expected(part)) is not None), None)
        if self.choices:
            return None if value in self.choices else ", ".join(self.choices)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        if not math.isfinite(value):
            return "a finite number"
        for bound, inside, phrase in (
            (self.least, operator.ge, "at least"),
            (self.above, operator.gt, "more than"),
            (self.most, operator.le, "at most"),
            (self.below, operator.lt, "less than"),
        ):
            if bound is not None and not inside(value, bound):
                return f"{phrase} {bound:g}"
        return None


def setting(default: Any = MISSING, *, help: str, **fields: Any) -> Any:
    """A field of a settings class: its default, and the fields of `Setting`."""
    return dataclasses.field(default=default, metadata={_KEY: Setting(help=help, **fields)})


def with_default(cls: Any, name: str, default: Any, **fields: Any) -> Any:
    """The field of another settings class once more, with another default and other changes to its `Setting`."""
    before = next(s for f, s in settings_of(cls) if f.name == name)
    return dataclasses.field(default=default, metadata={_KEY: dataclasses.replace(before, **fields)})


def seed_setting(default: int, *, help: str) -> Any:
    """A field that holds a seed, of `LARGEST_SEED` at most."""
    return setting(default, least=0, most=LARGEST_SEED, help=help)


def settings_of(cls: Any) -> Iterator[tuple[dataclasses.Field[Any], Setting]]:
    """The fields of a settings class (or object) that a user can set, in their order, each with its `Setting`."""
    for field in dataclasses.fields(cls):
        if _KEY in field.metadata:
            yield field, field.metadata[_KEY]


def check(settings: Any, prefix: str = "") -> None:
    """Refuse settings beyond their ranges, and values that are not among their choices. None is no value.

    Args:
        settings: of any settings class.
        prefix: what their options begin with: `teacher` for `--teacher-size`.

    Raises:
        InputError: naming the option.
    """
    for field, setting in settings_of(settings):
        value = getattr(settings, field.name)
        expected = None if value is None else setting.expected(value)
        if expected is not None:
            raise impossible(setting.name(field.name, prefix), expected, value)


def impossible(name: str, expected: str, found: object) -> InputError:
    """The error for a setting that cannot be, by the name of its field."""
    return InputError(
        "impossible setting",
        code="setting-impossible",
        where=option_name(name),
        expected=expected,
        found=found,
    )


def option_name(field: str) -> str:
    """The option of a field: `loss_weight` is `--loss-weight`."""
    return f"--{field.replace('_', '-')}"
