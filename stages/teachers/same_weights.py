"""Owns the refusal of other weights of a teacher than those that its work was planned with: nodes may have files of their own."""

from __future__ import annotations

from ...storage_schemas.errors import MismatchError
from .base import TeacherSpec


def check_weights(here: TeacherSpec, planned: str, *, where: str) -> None:
    """
    Args:
        here: the teacher that this machine has loaded.
        planned: digest of the weights in the plan.
        where: its name.

    Raises:
        MismatchError: it has others.
    """
    if here.weights_digest != planned:
        raise MismatchError(
            "this machine has other weights of the teacher",
            code="teacher-weights-differ-here",
            where=where,
            expected=f"{planned} (the plan)",
            found=f"{here.weights_digest} (this machine)",
            hint="give every node the same weights file",
        )
