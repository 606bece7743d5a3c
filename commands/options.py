"""Owns how options are made from the settings that they fill: type, range, default, choices, help and unit stand there."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING, dataclass
from typing import Any, get_args, get_origin, get_type_hints

import click

from ..pipeline.settings import Setting, option_name, settings_of
from .command import COMMON, Command, Option
from .types import Choice, Finite, Names, Numbers


@dataclass(frozen=True, kw_only=True)
class Described:
    """A field of a settings class.

    Attributes:
        kind: its type, without the None that it may also be.
    """

    field: dataclasses.Field[Any]
    said: Setting
    kind: Any


def described(cls: Any) -> Iterator[Described]:
    """The settings of a class, in their order."""
    hints = get_type_hints(cls)
    for field, said in settings_of(cls):
        parts = get_args(hints[field.name])
        kind = (
            next(part for part in parts if part is not type(None))
            if type(None) in parts
            else hints[field.name]
        )
        yield Described(field=field, said=said, kind=kind)


def options_of(
    into: str,
    cls: Any,
    *,
    prefix: str = "",
    section: str = COMMON,
    only: Collection[str] = (),
    make: Callable[..., Any] | None = None,
) -> Callable[[Command], Command]:
    """Options for the fields of a settings class; the command gets the settings that they fill.

    Args:
        into: the command's argument that takes the settings.
        cls: the settings class.
        prefix: what the options begin with: `teacher` for `--teacher-size`.
        section: of `--help`, for fields that name none.
        only: names of the fields to take; none for all of them.
        make: what makes the settings of the fields' values, by name; `cls` itself if it is not given.
    """
    options = {
        setting.field.name: option_of(setting, prefix=prefix, section=section)
        for setting in described(cls)
        if not only or setting.field.name in only
    }

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def filled(*arguments: Any, **values: Any) -> Any:
            settings = {name: values.pop(option.name) for name, option in options.items()}
            return command(*arguments, **values, **{into: (make or cls)(**settings)})

        return add_options(filled, list(options.values()))  # type: ignore[return-value]

    return decorate


def add_options(command: Command, options: list[Option]) -> Command:
    """What `click.option` does, for options that are there already; the first is the first in `--help`."""
    command.__dict__.setdefault("__click_params__", []).extend(reversed(options))
    return command


def option_of(
    setting: Described, *, prefix: str = "", section: str = COMMON, is_given: bool = True
) -> Option:
    """The option of one setting.

    Args:
        setting: the field.
        prefix, section: see `options_of`.
        is_given: whether its value is the field's default where nothing is given; else it is None.
    """
    said, kind, default = setting.said, setting.kind, setting.field.default
    name = "_".join(filter(None, (prefix, setting.field.name if said.option is None else said.option)))
    words = [option_name(name), name]
    attributes: dict[str, Any] = {
        "help": said.help,
        "section": said.group or section,
        "shown": default_text(setting),
    }
    if kind is bool:
        return Option(
            words, is_flag=True, **({"default": default} if is_given else {"default": None}), **attributes
        )
    if kind == tuple[str, ...]:
        return Option(words, multiple=True, **attributes)
    if is_given:
        attributes |= {"required": True} if default is MISSING else {"default": default}
    return Option(words, type=_type(kind, said), metavar=_metavar(kind, said), **attributes)


def default_text(setting: Described) -> str:
    """A setting's default, as a person would type it, or in the words that it has for that; '' for none."""
    default = setting.field.default
    if setting.said.default_text or default is MISSING or default is None:
        return setting.said.default_text
    return "" if setting.kind is bool else _typed(default)


def _type(kind: Any, said: Setting) -> Any:
    """The type of a value; a whole number's ends are whole numbers."""
    if kind in (int, float):
        least, most = (
            said.least if said.above is None else said.above,
            said.most if said.below is None else said.below,
        )
        make: Any = click.IntRange if kind is int else Finite
        return make(least, most, min_open=said.above is not None, max_open=said.below is not None)
    if get_origin(kind) is tuple:
        each = get_args(kind)
        return Numbers(_type(each[0], said), None if each[-1] is Ellipsis else len(each))
    if said.choices:
        return Choice(said.choices)
    if said.known:
        return Names(said.known)
    return click.Path() if said.unit in ("PATH", "FOLDER") else click.STRING


def _metavar(kind: Any, said: Setting) -> str | None:
    """What stands for the value; None for the type's own word: a choice's words, TEXT."""
    if said.unit:
        return said.unit
    if get_origin(kind) is tuple:
        each = ["…" if kind is Ellipsis else _metavar(kind, said) for kind in get_args(kind)]
        return ",".join(map(str, each))
    return {int: "INTEGER", float: "NUMBER"}.get(kind)


def _typed(value: Any) -> str:
    """A value as a person would type it."""
    if isinstance(value, tuple):
        return ",".join(map(_typed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
