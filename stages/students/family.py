"""Owns the seam between students and the libraries that define them: a family builds backbones by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from ...storage_schemas.fingerprint import Json
from ..models.known_weights import KnownWeights
from ..models.names import loaded_text
from ..models.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """An image tower, ready to be trained or to be frozen.

    Attributes:
        module: normalised images (N, 3, size, size) to features (N, width).
        config: family, name and whatever `Family.rebuild` needs; lands in the bundle.
        preprocess: from the model's own configuration.
        width: channels of the features.
        logit_scale: the model's own factor from cosines to logits; None where it has none.
        weights: where the weights come from, as text without local paths.
        loaded: further facts of them for people: the entry of their file, the activation.
        known: what is remembered of them.
    """

    module: nn.Module
    config: Mapping[str, Json]
    preprocess: Preprocess
    width: int
    logit_scale: float | None
    weights: str
    loaded: str = ""
    known: KnownWeights = field(default_factory=lambda: KnownWeights(None, None))

    def to_text(self, name: str, digest: str) -> str:
        """One line for people: model, weights, digest of them, activation, input size, preprocessing."""
        return loaded_text(name, self.weights, digest, self.loaded, self.preprocess.to_text())


class Family(Protocol):
    """A library of models."""

    @property
    def reads_images(self) -> bool:
        """Whether its students read images; else a teacher's maps, and `create` gives no module: `map_student` makes it."""

    def create(self, name: str, pretrained: str | None, *, seed: int, size: int | None) -> Backbone:
        """Build a backbone with its starting weights.

        `pretrained` is a tag, a path, `random`, or None for what the name itself implies (random for most);
        random weights depend on `seed` alone. `size` replaces the model's input size.

        Raises:
            InputError: no such model, no such weights, or weights of another model.
        """

    def rebuild(self, config: Mapping[str, Json]) -> nn.Module:
        """The module of `Backbone.config` with undefined weights; reads no file and downloads nothing."""

    def implies_weights(self, name: str) -> bool:
        """Whether a model's name alone names its weights."""
