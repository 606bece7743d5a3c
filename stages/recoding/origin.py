"""Owns what a recoded store, and files made of one, say of where they come from."""

from __future__ import annotations

from dataclasses import dataclass

from ...storage_schemas.fingerprint import Json
from .row_choice import RowChoice


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The store that something was made of, and what was taken of it.

    Attributes:
        fingerprint: digest of that store's fingerprint.
        num_views: that it has.
        views: places of those that were taken.
        rows: which samples.
        classes: digest of the class vectors that logits were formed with anew; None where they were not.
    """

    fingerprint: str
    num_views: int
    views: tuple[int, ...]
    rows: RowChoice
    classes: str | None

    def to_json(self) -> Json:
        """What decides bytes: for fingerprints. What was taken whole is not named."""
        facts: dict[str, Json] = {"store": self.fingerprint}
        if self.views != tuple(range(self.num_views)):
            facts["views"] = list(self.views)
        if not self.rows.is_all:
            facts["samples"] = self.rows.to_json()
        if self.classes is not None:
            facts["classes"] = self.classes
        return facts
