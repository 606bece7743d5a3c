"""Owns what an encoding is: the arrays that it needs for a target, and the way into them and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .table import Table

    Floats = NDArray[np.float32]

#: How the chunks of an array become bytes, all with a checksum: as they are; bits of like weight together, then lz4; zstd, quickly;
#: zstd in blocks of 32 KiB, thoroughly; the same of bytes of like weight together.
Codec = Literal["plain", "shuffled", "small", "dense", "dense-shuffled"]


class NoRoomError(ValueError):
    """A finite number that an encoding has no room for: the largest that it has, and the largest of the values."""

    def __init__(self, encoding: str, expected: float, found: float) -> None:
        super().__init__(f"numbers that {encoding} has no room for")
        self.encoding, self.expected, self.found = encoding, expected, found


class Target(Protocol):
    """What an encoding needs to know of a target (see `TargetSpec`)."""

    @property
    def name(self) -> str: ...

    @property
    def axes(self) -> tuple[str, ...]:
        """Of all its values; the first two are sample and view."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row's view."""


@dataclass(frozen=True, kw_only=True)
class EncodedArray:
    """One array of the store that holds a target, or a part of it.

    Attributes:
        name: of the array: the target's, perhaps with an ending.
        axes, shape: of one row's view.
        dtype: Zarr data type.
        fill: value of rows that are not there.
        codec: see `Codec`.
        meaning: the array's attribute of this name, for readers of plain Zarr; '' for none.
        transposed: whether the first axis of its own comes first in a chunk's bytes, then view and sample: numbers of one kind lie together, and
            compress better.
        beside: whether it is a small array beside the target's own: its chunks hold the rows of a shard, and all views.
    """

    name: str
    dtype: str
    fill: Any
    codec: Codec
    axes: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    meaning: str = ""
    transposed: bool = False
    beside: bool = False


class Encoding(Protocol):
    """One way to store a target. It holds its parameters, and what was fitted to data.

    Attributes:
        name: as `--encoding` takes it, without parameters.
        kl_budget: largest KL divergence (nats, T = 1) to the fp32 logits on any sample that it may cost, declared beforehand; None
            where it depends on the teacher and is measured.
        table: what was fitted to data, which lies in the store once; None where nothing was.
    """

    @property
    def name(self) -> str: ...

    @property
    def text(self) -> str:
        """As `--encoding` takes it, with its parameters."""

    @property
    def kl_budget(self) -> float | None: ...

    @property
    def table(self) -> Table | None: ...

    def to_json(self) -> Any:
        """Its name, or where it has parameters a JSON object of all that decides its bytes."""

    def arrays(self, target: Target) -> tuple[EncodedArray, ...]:
        """The arrays of a target, its own one first."""

    def encode(
        self, target: Target, values: Floats, *, keys: Sequence[str], first_view: int
    ) -> dict[str, NDArray[Any]]:
        """The content of each array, by name: (row, view, …) of values fp32 (row, view, …); NaN rows are not valid.

        A function of its arguments alone: rows may come in any portions.

        Args:
            keys: of the rows' samples.
            first_view: number of the first of the views.

        Raises:
            NoRoomError: a finite number that the encoding has no room for.
        """

    def decode(self, target: Target, stored: Mapping[str, NDArray[Any]]) -> Floats:
        """Values fp32 (row, …) of rows of one view of each array, (row, …) by name; NaN where not valid."""
