"""Owns what the end of a worker process on Ray means, in one line: for the unit it had at hand, and for a run whose workers all end."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...storage_schemas.errors import TeachonceError

#: Characters of Ray's own words about a death.
_LONGEST_REASON = 500

#: What Ray says of a worker that it ended itself since its node's memory was nearly full; of one that the system ended it says nothing.
_SHORT_OF_MEMORY = ("ran out of memory", "low on memory", "OUT_OF_MEMORY")

#: What it says where a node is gone, by a fault or since it was taken away.
_NODE_GONE = "its node has died"

_FEWER = "use fewer --workers if memory is short, then run the same command again"


@dataclass(frozen=True, kw_only=True)
class Death:
    """The end of a worker process.

    Attributes:
        found: what Ray knows of it.
        of_node: whether its node is gone, as far as Ray knows.
        of_memory: whether Ray ended it since its node's memory was nearly full.
        after_seconds: with a unit that took longer than these; None for an end that nobody here wanted.
    """

    found: str
    of_node: bool = False
    of_memory: bool = False
    after_seconds: float | None = None

    @staticmethod
    def of(error: Exception) -> Death:
        """From Ray's own error, whose message fills a page."""
        text = str(error)
        memory = "OutOfMemory" in type(error).__name__ or any(words in text for words in _SHORT_OF_MEMORY)
        return Death(found=_reason(error), of_node=_NODE_GONE in text, of_memory=memory)

    @property
    def how(self) -> str:
        """In words, for a line that begins with "a worker"."""
        return "ended unforeseen" if self.after_seconds is None else "was killed for --unit-timeout"

    def of_unit(self, times: int) -> TeachonceError:
        """The error for a unit whose workers ended so many times."""
        if self.after_seconds is not None:
            return TeachonceError(
                f"it took longer than --unit-timeout {self.after_seconds:g} s, {times} times",
                code="unit-timeout",
                hint="give it more time, or mend what it waits for, then run the same command again",
            )
        if self.of_memory:
            return TeachonceError(
                "its node ran out of memory",
                code="node-out-of-memory",
                hint="use fewer --workers, then run the same command again",
            )
        return TeachonceError(
            f"its worker process ended unforeseen {times} times (killed, or crashed)",
            code="worker-died",
            found=self.found,
            hint=_FEWER,
        )

    def of_all(self, times: int) -> TeachonceError:
        """The error for a run: each of its workers ended so many times in a row, and no unit was finished meanwhile."""
        if self.of_memory:
            return TeachonceError(
                f"the nodes of the workers are out of memory: each worker was ended {times} times in a row",
                code="node-out-of-memory",
                hint="free memory there, or use fewer --workers, then run the same command again",
            )
        return TeachonceError(
            f"each worker process ended unforeseen {times} times in a row",
            code="worker-died",
            found=self.found,
            hint=_FEWER,
        )


def _reason(error: Exception) -> str:
    """What Ray knows of a death: the kind of end of the process, and the first sentence about it."""
    found = re.search(r"Worker exit type: (\w+) Worker exit detail: ([^.\n]*)", str(error))
    if found is not None:
        return f"{found[1]}: {found[2]}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST_REASON]}"
