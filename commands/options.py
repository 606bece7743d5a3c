"""Owns how options are made from the settings that they fill: type, range, default, choices, help and unit come from there."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING, dataclass
from typing import Any, get_args, get_origin, get_type_hints

import click

from ..pipeline.settings import Setting, option_name, settings_of
from ..pipeline.worker_range import WorkerRange
from .command import COMMON, Command, Option
from .types import Choice, Finite, Names, Numbers, Workers


@dataclass(frozen=True, kw_only=True)
class SettingField:
    """A field of a settings class.

    Attributes:
        kind: its type, without the None that it may also be.
    """

    field: dataclasses.Field[Any]
    setting: Setting
    kind: Any


def setting_fields(cls: Any) -> Iterator[SettingField]:
    """The settings of a class, in their order."""
    hints = get_type_hints(cls)
    for field, setting in settings_of(cls):
        parts = get_args(hints[field.name])
        others = [part for part in parts if part is not type(None)]
        kind = functools.reduce(operator.or_, others) if type(None) in parts else hints[field.name]
        yield SettingField(field=field, setting=setting, kind=kind)


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
        entry.field.name: option_of(entry, prefix=prefix, section=section)
        for entry in setting_fields(cls)
        if not only or entry.field.name in only
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


def option_of(entry: SettingField, *, prefix: str = "", section: str = COMMON, is_given: bool = True) -> Option:
    """The option of one setting.

    Args:
        entry: the field and its setting.
        prefix, section: see `options_of`.
        is_given: whether its value is the field's default where nothing is given; else it is None.
    """
    setting, kind, default = entry.setting, entry.kind, entry.field.default
    name = setting.name(entry.field.name, prefix)
    declarations = [option_name(name), name]
    attributes: dict[str, Any] = {
        "help": setting.help,
        "section": setting.group or section,
        "shown": default_text(entry),
    }
    if kind is bool:
        return Option(
            declarations,
            is_flag=True,
            **({"default": default} if is_given else {"default": None}),
            **attributes,
        )
    if kind == tuple[str, ...]:
        return Option(declarations, multiple=True, **attributes)
    if is_given:
        attributes |= {"required": True} if default is MISSING else {"default": default}
    return Option(declarations, type=_type(kind, setting), metavar=_metavar(kind, setting), **attributes)


def default_text(entry: SettingField) -> str:
    """A setting's default, as a person would type it, or its `default_text`; '' for none."""
    default = entry.field.default
    if entry.setting.default_text or default is MISSING or default is None:
        return entry.setting.default_text
    return "" if entry.kind is bool else _typed(default)


def _type(kind: Any, setting: Setting) -> Any:
    """The type of a value; a whole number's ends are whole numbers."""
    if kind == int | WorkerRange:
        return Workers()
    if kind in (int, float):
        least, most = (
            setting.least if setting.above is None else setting.above,
            setting.most if setting.below is None else setting.below,
        )
        make: Any = click.IntRange if kind is int else Finite
        return make(least, most, min_open=setting.above is not None, max_open=setting.below is not None)
    if get_origin(kind) is tuple:
        each = get_args(kind)
        return Numbers(_type(each[0], setting), None if each[-1] is Ellipsis else len(each))
    if setting.choices:
        return Choice(setting.choices)
    if setting.known:
        return Names(setting.known)
    return click.Path() if setting.unit in ("PATH", "FOLDER") else click.STRING


def _metavar(kind: Any, setting: Setting) -> str | None:
    """The placeholder of the value; None for the type's own: the choices, or TEXT."""
    if setting.unit:
        return setting.unit
    if get_origin(kind) is tuple:
        each = ["…" if kind is Ellipsis else _metavar(kind, setting) for kind in get_args(kind)]
        return ",".join(map(str, each))
    return {int: "INTEGER", float: "NUMBER"}.get(kind)


def _typed(value: Any) -> str:
    """A value as a person would type it."""
    if isinstance(value, tuple):
        return ",".join(map(_typed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
