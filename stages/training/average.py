"""Owns the seam of averages: weights that are kept beside those that train, and may be the student in the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ...storage_schemas.fingerprint import Json


class Average:
    """An average of the trainee's weights over training.

    Attributes:
        selects: whether it finds by validation losses what counts in the end, instead of the best epoch's weights.
    """

    selects: ClassVar[bool] = False

    @property
    def is_over(self) -> bool:
        """Whether further training changes nothing of it."""
        return False

    def update(self) -> None:
        """Take in the weights as they are now."""
        raise NotImplementedError

    def measured(self, loss: float) -> None:
        """Learn the validation loss of the weights as they are now. Only one that `selects` is told."""

    def final(self) -> Mapping[str, Tensor]:
        """What the bundle would hold now, of all that changes, by name."""
        raise NotImplementedError

    def about(self) -> dict[str, Json]:
        """What the bundle records of it, beside the settings."""
        return {}

    def state(self) -> Mapping[str, Tensor]:
        """All that a checkpoint needs of it."""
        raise NotImplementedError

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave.

        Raises:
            KeyError, ValueError: it does not fit; with the name of what is missing, or has another shape.
        """
        raise NotImplementedError


class OneAverage(Average):
    """One average, whose state it is itself.

    Attributes:
        tensors: it, by name; changed in place.
    """

    tensors: dict[str, Tensor]

    def final(self) -> Mapping[str, Tensor]:
        return self.tensors

    def state(self) -> Mapping[str, Tensor]:
        return self.tensors

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.tensors.items():
            if state[name].shape != value.shape:
                raise ValueError(name)
        if len(state) != len(self.tensors):
            raise ValueError("more weights")
        for name, value in self.tensors.items():
            value.copy_(state[name])
