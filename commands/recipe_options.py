"""Owns the options of all recipes: one for each name of a setting, whichever recipes have it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import click

from ..pipeline.settings import settings_of
from ..stages.recipes.registry import other_settings, own_settings, recipe_names
from ..stages.recipes.settings import TRAINING, TrainSettings
from .command import COMMON, Command, Option, Subcommand
from .options import SettingField, add_options, default_text, option_of, setting_fields
from .types import Choice


class RecipeChoice(Choice):
    """The names of all recipes. Those of other packages are looked up when it is used, which takes a while."""

    def __init__(self) -> None:
        super().__init__(())

    @property
    def choices(self) -> tuple[str, ...]:
        return recipe_names()

    @choices.setter
    def choices(self, none: object) -> None:
        """click sets them; they are the recipes' names whatever it sets."""


class RecipeCommand(Subcommand):
    """A command with the settings of every recipe: None where nothing was given, since defaults are the recipe's.

    Recipes of other packages are loaded when the command is used, not when the program starts.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = {parameter.name for parameter in self.params}
        others = [option for option in _others() if option.name not in own]
        return [*super().get_params(ctx), *others]


def recipe_options(command: Command) -> Command:
    """Give a command the options of this program's recipes, by the names of the settings."""
    add_options(command, options_of_recipes(own_settings()))
    return command


@functools.cache
def _others() -> list[Option]:
    return options_of_recipes(other_settings())


def options_of_recipes(recipes: Mapping[str, type[Any]]) -> list[Option]:
    """Options for the settings of these recipes, by their names; each shows the default of each recipe that has it."""
    found: dict[str, dict[str, SettingField]] = {}
    for recipe, settings in recipes.items():
        for entry in setting_fields(settings):
            found.setdefault(entry.field.name, {})[recipe] = entry
    return [_option(of, of_all=len(of) == len(recipes)) for of in found.values()]


def _option(of: Mapping[str, SettingField], *, of_all: bool) -> Option:
    """One option; where not all recipes have it, its help begins with those that do."""
    first = next(iter(of.values()))
    defaults = {recipe: default_text(entry) for recipe, entry in of.items()}
    shown = set(defaults.values())
    text = next(iter(shown)) if len(shown) == 1 else ", ".join(f"{r} {d}" for r, d in defaults.items() if d)
    help_ = (
        first.setting.help if of_all else f"{', '.join(of)}: {first.setting.help[0].lower()}{first.setting.help[1:]}"
    )
    choices = tuple(dict.fromkeys(word for entry in of.values() for word in entry.setting.choices))
    setting = dataclasses.replace(first.setting, help=help_, default_text=text, choices=choices)
    common = first.field.name in {field.name for field, _ in settings_of(TrainSettings)}
    return option_of(
        dataclasses.replace(first, setting=setting), section=COMMON if common else TRAINING, is_given=False
    )
