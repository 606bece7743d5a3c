"""Owns telling a store that was made in the wrong way as a whole from one with wrong shards: a repair would be a second run."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from ...storage_schemas.errors import MismatchError
from ...storage_schemas.plain_text import typed
from .cause import AGAIN
from .finding import Finding


def in_one_way(findings: Iterable[Finding], looked_at: Collection[int], shards: str, store: str) -> list[Finding]:
    """The same findings; those of a cause that all shards have, and that is one of how a store is made, are not mendable.

    Args:
        looked_at: shards on which the teacher ran again.
        shards, store: as they were named, for the command that makes a right store.
    """
    found = list(findings)
    with_cause: dict[str, set[int]] = {}
    for each in found:
        if each.of_run and each.shard is not None:
            with_cause.setdefault(each.code, set()).add(each.shard)
    everywhere = {code for code, its in with_cause.items() if its >= set(looked_at)}
    return [_of_all(each, shards, store) if each.of_run and each.code in everywhere else each for each in found]


def _of_all(finding: Finding, shards: str, store: str) -> Finding:
    fields = finding.error.fields
    error = MismatchError(
        finding.error.what,
        code=finding.code,
        where=fields.get("where"),
        expected=fields.get("expected"),
        found=fields.get("found"),
        hint=f"all shards are so, and --repair would be a second run: {fields.get('hint', AGAIN)} "
        f"(teachonce cache {typed(shards)} --teacher … --out {typed(f'{store}-2')})",
    )
    return replace(finding, error=error, mendable=False)
