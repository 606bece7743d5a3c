"""Owns a finding: one thing that is wrong, by its cause, with what to do; and the exit codes that scripts go by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from ...storage_schemas.errors import DamagedError, MismatchError, TeachonceError
from ...storage_schemas.fingerprint import Json


class Verdict(IntEnum):
    """What `teachonce verify` exits with. 1 and 2 are click's: what was given is not there, or the command is wrong."""

    CLEAN = 0
    DAMAGED = 3
    MISMATCH = 4
    UNKNOWN = 5

    @property
    def word(self) -> str:
        return {0: "clean", 3: "damaged", 4: "mismatch", 5: "unknown"}[int(self)]


#: The worst first: what a report exits with is the first of these that one of its findings has.
_WORST = (Verdict.DAMAGED, Verdict.MISMATCH, Verdict.UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        error: what, where, expected and found, the code of the cause, and what to type next.
        shard: that it is in; None for what concerns the whole.
        mendable: whether running `cache` on this shard again puts it right: the store is at fault, and its tar is not.
        of_run: whether its cause is a way in which a whole store is made, such as other weights or another preprocessing.
        rows: some of the rows that show it.
        facts: measurements, for programs.
    """

    error: TeachonceError
    shard: int | None = None
    mendable: bool = False
    of_run: bool = False
    rows: Sequence[int] = ()
    facts: Mapping[str, Json] = field(default_factory=dict)

    @property
    def code(self) -> str:
        return self.error.code

    @property
    def verdict(self) -> Verdict:
        """Damage is bytes that are not those that were written; a mismatch is whole, and of something else."""
        if isinstance(self.error, DamagedError):
            return Verdict.DAMAGED
        return Verdict.MISMATCH if isinstance(self.error, MismatchError) else Verdict.UNKNOWN

    def to_json(self) -> Json:
        fields: dict[str, Json] = {
            "verdict": self.verdict.word,
            "what": self.error.what,
            **self.error.fields,
            "shard": self.shard,
            "mendable": self.mendable,
        }
        if self.rows:
            fields["rows"] = [int(row) for row in self.rows]
        return fields | ({"facts": dict(self.facts)} if self.facts else {})


class Findings(list[Finding]):
    """What was found so far."""

    def note(self, error: TeachonceError, *, shard: int | None = None, mendable: bool = False) -> None:
        self.append(Finding(error=error, shard=shard, mendable=mendable))

    def note_all(self, errors: Iterable[TeachonceError]) -> None:
        """Things that concern the whole."""
        for error in errors:
            self.note(error)


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """The worst of all findings; clean where there is none."""
    found = {finding.verdict for finding in findings}
    return next((verdict for verdict in _WORST if verdict in found), Verdict.CLEAN)
