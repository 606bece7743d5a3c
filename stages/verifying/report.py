"""Owns the report of a verification: all findings in order, and as text for people: by causes, with what to type next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ...pipeline.tables import bytes_text
from ...pipeline.types import Unit
from ...storage_schemas.errors import with_code
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import counted
from .asked import Asked
from .finding import Finding, Verdict, verdict_of
from .one_way import in_one_way
from .shard_seen import ShardSeen

#: Findings of one cause that are printed; `--json` has all.
_SHOWN = 3

_WORDS = {
    Verdict.CLEAN: "clean",
    Verdict.DAMAGED: "damaged",
    Verdict.MISMATCH: "not what it should be",
    Verdict.UNKNOWN: "not to be told",
}


@dataclass(kw_only=True)
class Report:
    """What was looked at, and what was found.

    Attributes:
        level: `quick` or `full`.
        part: the slice of the shards, as `I/N`; None for all.
        rows, num_shards: that were looked at.
        num_bytes: that were read.
        repaired: shards that were made again, and `repaired_by` what was done to them.
        asked: what the teacher gave, where it ran again.
        asked_shards: on which it did.
    """

    shards: str
    store: str
    level: str
    part: str | None = None
    findings: list[Finding] = field(default_factory=list)
    rows: int = 0
    num_shards: int = 0
    num_bytes: int = 0
    repaired: tuple[int, ...] = ()
    repaired_by: str = "cached"
    asked: Asked = field(default_factory=lambda: Asked())
    asked_shards: set[int] = field(default_factory=set)

    def begin(self, units: Iterable[Unit]) -> None:
        """These are going to be looked at."""
        shards = [unit.rows for unit in units if "shard" in unit.inputs]
        self.rows, self.num_shards = sum(shards), len(shards)

    def add(self, seen: ShardSeen) -> None:
        """What a unit found."""
        self.findings += seen.findings
        self.num_bytes += seen.num_bytes
        if seen.measured is not None:
            self.asked.add(seen.measured)
            if seen.measured.rows:
                self.asked_shards.add(seen.shard)

    def settle(self) -> None:
        """All has been looked at: what is wrong in all shards alike is told from what is wrong in some."""
        self.findings = in_one_way(self.findings, self.asked_shards, self.shards, self.store)

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.findings)

    @property
    def in_order(self) -> list[Finding]:
        """What concerns the whole first, then by shards, whoever looked at them."""
        return sorted(self.findings, key=lambda found: -1 if found.shard is None else found.shard)

    def to_json(self) -> Json:
        return {
            "shards": self.shards,
            "store": self.store,
            "level": self.level,
            **({} if self.part is None else {"slice": self.part}),
            "verdict": self.verdict.word,
            "exit_code": int(self.verdict),
            "rows": self.rows,
            "num_shards": self.num_shards,
            "bytes_read": self.num_bytes,
            **({"teacher": self.asked.to_json()} if self.asked.rows else {}),
            **({"repaired": list(self.repaired)} if self.repaired else {}),
            "findings": [finding.to_json() for finding in self.in_order],
        }


def report_text(report: Report) -> str:
    """For people: findings by their causes, in the order in which they were found, and one line at the end."""
    lines: list[str] = []
    by_code: dict[str, list[Finding]] = {}
    for finding in report.in_order:
        by_code.setdefault(finding.code, []).append(finding)
    for code, found in by_code.items():
        lines += [with_code(str(one.error), code) for one in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"  … and {len(found) - _SHOWN} more with the code {code}; --json lists them all")
    what = f"{counted(report.num_shards, 'shard')}, {counted(report.rows, 'row')}"
    read = f", {bytes_text(report.num_bytes)} read" if report.num_bytes else ""
    count = f": {counted(len(report.findings), 'finding')}" if report.findings else ""
    lines += report.asked.lines()
    if report.repaired:
        lines.append(f"{report.repaired_by} again: shards {', '.join(map(str, report.repaired))}")
    level = report.level if report.part is None else f"{report.level}, slice {report.part}"
    lines.append(f"{report.store}: {_WORDS[report.verdict]}{count} ({level}; {what}{read})")
    return "\n".join(lines)
