"""Owns what a later generation of a target store records of how it came of the one before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .json_file import Count

#: The name of the generation that a store begins with. The others are 2, 3, and so on.
FIRST = "1"

#: The folder, within the store, of arrays that a generation has instead of others of the same name.
GENERATIONS = "generations"

#: What a generation added. `mended`: rows of images that could not be read before.
What = Literal["views", "images", "targets", "classes", "mended"]


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How a generation came of another one.

    Attributes:
        name: of the generation.
        parent: name of the generation that it came of.
        what: was added.
        shards: those that it wrote blocks for, and has receipts of: [first, behind the last] each, ascending.
        arrays: path in the store of each array that lies elsewhere than under its own name; those of its parents are among them.
        made: paths of arrays that it made; the generations before have none of these.
    """

    name: str
    parent: str
    what: What
    shards: tuple[tuple[Count, Count], ...] = ()
    arrays: Mapping[str, str] = field(default_factory=dict)
    made: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Within the store: its own arrays, where it has some."""
        return f"{GENERATIONS}/{self.name}"

    @property
    def overlay(self) -> str:
        """Within the store: of mended blocks, which stand in place of those of the generations before, under the same paths."""
        return f"{self.folder}/mended" if self.what == "mended" else ""

    @property
    def all_shards(self) -> Iterator[int]:
        """The shards that it wrote blocks for, in order."""
        return (shard for first, stop in self.shards for shard in range(first, stop))

    def wrote(self, shard: int) -> bool:
        """Whether it wrote a block of this shard."""
        return any(first <= shard < stop for first, stop in self.shards)


def ranges(shards: list[int]) -> tuple[tuple[int, int], ...]:
    """Ascending numbers as ranges [first, behind the last]."""
    found: list[tuple[int, int]] = []
    for shard in shards:
        if found and found[-1][1] == shard:
            found[-1] = found[-1][0], shard + 1
        else:
            found.append((shard, shard + 1))
    return tuple(found)
