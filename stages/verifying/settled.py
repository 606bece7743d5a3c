"""Owns what is settled before a teacher runs again, whatever kind of store it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from ..models.settings import ComputeSettings, precision_name

Plan = TypeVar("Plan", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Settled(Generic[Plan]):
    """Which teacher runs again and on what, and lines that a person should see."""

    plan: Plan
    notes: tuple[str, ...]


def compute_here(given: ComputeSettings, recorded: Mapping[str, Any]) -> ComputeSettings:
    """How it runs: as the store records where nothing else is asked for.

    Args:
        recorded: the field `compute` of the store's fingerprint.
    """
    if given.precision == "auto":
        given = replace(given, precision=precision_name(str(recorded.get("precision", "fp32"))))
    if given.threads is None and isinstance(recorded.get("threads"), int):
        given = replace(given, threads=recorded["threads"])
    return given


def notes_on(loaded: str, *, recorded: str, is_recorded: bool) -> list[str]:
    """What was loaded, and whether its weights are those whose digest the store records."""
    notes = [f"teacher {loaded}"]
    if not is_recorded:
        notes.append(f"these are not the weights that the store records ({recorded[:12]})")
    return notes
