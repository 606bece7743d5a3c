"""Owns what is measured of a student on images, as it is counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..corpora.label import NoLabels
from ..corpora.left_out import LeftOut
from ..inputs.class_match import Match
from .metrics import Accuracy, Agreement


@dataclass(kw_only=True)
class Evaluation:
    """What was measured.

    Attributes:
        class_names: C names in the order of the logits.
        found: images in the set; `unusable` of them have (path, reason) instead of a prediction.
        left_out: entries of it that are no images.
        labels: images by label; `unlabelled` have none.
        no_labels: images with something else where a label should stand.
        matches: what became of each label.
        accuracy: over the images whose label is a class.
        agreement: over the images that the store's teacher saw; None where no store was given.
        not_in_store: usable images that it does not hold.
        other_pictures: usable images whose keys it has, with other content than the teacher saw.
        notes: lines that a person should see.
    """

    class_names: tuple[str, ...]
    found: int = 0
    unusable: list[tuple[str, str]] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    labels: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0
    no_labels: NoLabels = field(default_factory=NoLabels)
    matches: dict[str, Match] = field(default_factory=dict)
    accuracy: Accuracy
    agreement: Agreement | None = None
    not_in_store: int = 0
    other_pictures: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def usable(self) -> int:
        return self.found - len(self.unusable)

    @property
    def unmatched(self) -> dict[str, str]:
        """Labels that are no class, with the reason."""
        return {label: m.reason for label, m in sorted(self.matches.items()) if m.class_id is None}
