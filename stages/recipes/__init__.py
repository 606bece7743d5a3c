"""Recipes: one file a distillation method, and the two that there are by name."""

from __future__ import annotations

from ...storage_schemas.errors import InputError
from .kd import Kd
from .promptkd import PromptKd
from .recipe import Recipe, Said, Settings

__all__ = ["RECIPES", "Recipe", "Said", "Settings", "recipe_named"]

RECIPES: dict[str, Recipe] = {"kd": Kd(), "promptkd": PromptKd()}


def recipe_named(name: str) -> Recipe:
    """The recipe that `--recipe NAME` means.

    Raises:
        InputError: there is none.
    """
    if name not in RECIPES:
        raise InputError("unknown recipe", where="--recipe", expected=" or ".join(RECIPES), found=name)
    return RECIPES[name]
