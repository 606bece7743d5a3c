"""Owns which part of a shard's block is written: all of it, or what a growing store does not have yet."""

from __future__ import annotations

from dataclasses import dataclass

from .store_description import StoreSpec


@dataclass(frozen=True, kw_only=True)
class BlockPart:
    """A part of a shard's rows.

    Attributes:
        first_view: views from this one on.
        targets: names of the targets; None for all.
        rows: whether keys, and which rows are valid, are written too.
        params: whether the parameters of these views are.
    """

    first_view: int = 0
    targets: tuple[str, ...] | None = None
    rows: bool = True
    params: bool = True

    def names_of(self, spec: StoreSpec) -> tuple[str, ...]:
        """Names of the targets, in the order of the store."""
        names = tuple(target.name for target in spec.targets)
        return names if self.targets is None else tuple(name for name in names if name in self.targets)


#: All of a block.
WHOLE = BlockPart()
