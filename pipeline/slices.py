"""Owns slices: commands that share out the units of one stage among them without a cluster, unit *i* to slice *i* mod N."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from ..storage_schemas.errors import InputError

U = TypeVar("U")


@dataclass(frozen=True)
class Slice:
    """One part of N. Numbers start at 0, as those of Slurm's arrays and of Kubernetes' indexed jobs do by default."""

    index: int
    count: int

    @staticmethod
    def parse(text: str) -> Slice:
        """Of `I/N`.

        Raises:
            InputError: anything else.
        """
        index, slash, count = text.partition("/")
        if slash and index.isdecimal() and count.isdecimal() and int(index) < int(count):
            return Slice(int(index), int(count))
        raise InputError(
            "no slice",
            code="slice-malformed",
            where="--slice",
            expected="I/N with 0 ≤ I < N, such as 0/16 to 15/16",
            found=text,
            hint="in a Slurm array: --slice $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT, with --array=0-15",
        )

    def of(self, units: Iterable[U]) -> Iterator[U]:
        """Those of all units, in their order, that are this slice's."""
        return islice(units, self.index, None, self.count)

    @property
    def name(self) -> str:
        """Of its lock."""
        return f"{self.index}-of-{self.count}.json"

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
