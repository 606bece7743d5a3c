"""Owns the table of recipes: this program's own, and those of installed packages (entry points `teachonce.recipes`).

Imports no torch before a recipe is looked up by name: the command line is made of names and settings.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import TYPE_CHECKING, Any, cast

from ...storage_schemas.errors import InputError
from ...storage_schemas.near_names import did_you_mean
from .affinity_settings import AffinitySettings
from .features_settings import FeaturesSettings
from .kd_settings import KdSettings
from .promptkd_settings import PromptKdSettings
from .recipe import Recipe
from .reverse_distillation_settings import ReverseDistillationSettings
from .s3a_settings import S3aSettings
from .settings import TrainSettings
from .vl2v_settings import Vl2vSettings

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: Entry points of this group name a recipe: an object as `Recipe` describes it, or a class of such objects.
GROUP = "teachonce.recipes"

_OWN: dict[str, tuple[type[TrainSettings], str]] = {
    "kd": (KdSettings, "kd:Kd"),
    "promptkd": (PromptKdSettings, "promptkd:PromptKd"),
    "features": (FeaturesSettings, "features:Features"),
    "vl2v": (Vl2vSettings, "vl2v:Vl2v"),
    "reverse-distillation": (ReverseDistillationSettings, "reverse_distillation:ReverseDistillation"),
    "s3a": (S3aSettings, "s3a:S3a"),
    "affinity": (AffinitySettings, "affinity:Affinity"),
}


def recipe_names() -> tuple[str, ...]:
    """What `--recipe` takes: the own ones first."""
    return (*_OWN, *sorted(_others()))


def own_settings() -> dict[str, type[TrainSettings]]:
    """The settings class of each recipe of this program."""
    return {name: settings for name, (settings, _) in _OWN.items()}


def other_settings() -> dict[str, type[TrainSettings]]:
    """Those of other packages, which are imported for it; without those that cannot be loaded."""
    found = {}
    for name in sorted(_others()):
        with contextlib.suppress(InputError):  # the error comes when the recipe is used
            found[name] = type(recipe_named(name).defaults)
    return found


@functools.cache
def recipe_named(name: str) -> Recipe:
    """The recipe that `--recipe NAME` means.

    Raises:
        InputError: there is none, or another package's cannot be loaded.
    """
    if name in _OWN:
        module, _, attribute = _OWN[name][1].partition(":")
        return cast("Recipe", getattr(importlib.import_module(f".{module}", __package__), attribute)())
    others = _others()
    if name not in others:
        names = recipe_names()
        raise InputError(
            "unknown recipe",
            code="recipe-unknown",
            where="--recipe",
            expected=" or ".join(names),
            found=name,
            hint=did_you_mean(name, names, "") or None,
        )
    return _loaded(others[name])


def _others() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP) if point.name not in _OWN}


def _loaded(point: EntryPoint) -> Recipe:
    try:
        found: Any = point.load()
    except Exception as error:  # whatever another package raises while it is imported
        raise InputError(
            "a package's recipe cannot be loaded",
            code="plugin-unloadable",
            where=f"--recipe {point.name}",
            expected=point.value,
            found=f"{type(error).__name__}: {error}",
            hint="mend the package, or uninstall it",
        ) from error
    recipe = found() if isinstance(found, type) else found
    lacking = [member for member in _members() if not hasattr(recipe, member)]
    if lacking:
        raise InputError(
            "a package's recipe is not whole",
            code="recipe-incomplete",
            where=f"--recipe {point.name}",
            expected=", ".join(lacking),
            found=point.value,
            hint="inherit BaseRecipe of teachonce.stages.recipes.recipe, and see docs/extending.md for the rest",
        )
    return cast("Recipe", recipe)


def _members() -> list[str]:
    """Names of what `Recipe` describes."""
    return [name for name in vars(Recipe) if not name.startswith("_")]
