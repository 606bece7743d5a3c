"""Owns one reading of all shards of a store that are done: values, soft labels, and whatever else watches it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...pipeline.progress import Progress
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.plain_text import counted
from ...storage_schemas.target_store import read_target
from .sample_block import BlockBuilder, SampleBlock, SampleFacts, unmeasured
from .soft_labels import SoftLabels, Values
from .stored import Stored

if TYPE_CHECKING:
    from ...storage_schemas.encodings import Floats


class Watcher:
    """What looks at the shards while they are read; its memory does not grow with the store. This one does nothing."""

    def begin(self, shard: int, start: int, keys_N: NDArray[np.bytes_], valid_N: NDArray[np.bool_]) -> None:
        """A shard is next: its first row, keys and which rows are valid."""

    def values(self, name: str, view: int, rows: slice, found: Floats) -> None:
        """Some rows of one target of it in one view: fp32 (sample, …), rows counted from the shard's first."""

    def add(self, block: SampleBlock) -> None:
        """All views of it have been read. Not called where the store gives no logits."""


@dataclass(kw_only=True)
class Measured:
    """What was found.

    Attributes:
        values: of each target by name; `logits` too where they are derived, as `logits_derived` says.
        soft: None where the store gives no logits, or no shard of it can be read.
        problems: lines for people.
    """

    values: dict[str, Values]
    logits_derived: bool
    soft: SoftLabels | None = None
    problems: list[str] = field(default_factory=list)


def measure_store(stored: Stored, top: int, watchers: Sequence[Watcher] = ()) -> Measured:
    """Read every shard that is done, view by view.

    Args:
        stored: with rows.
        top: how many samples and shards to name.
    """
    spec = stored.rows
    names = [target.name for target in spec.targets]
    derived = not stored.no_logits and "logits" not in names
    if derived:
        names.append("logits")
    found = Measured(values={name: Values() for name in names}, logits_derived=derived)
    done = stored.shards_done()
    with Progress("inspect", sum(spec.rows(s).stop - spec.rows(s).start for s in done)) as bar:
        for shard in done:
            try:
                _measure_shard(stored, shard, found, top, watchers)
            except DamagedError as error:
                found.problems.append(str(error))
            bar.advance(spec.rows(shard).stop - spec.rows(shard).start)
    for name, value in found.values.items():
        if value.nan or value.infinite:
            shards = ", ".join(map(str, value.bad_shards[:top])) + (" …" if len(value.bad_shards) > top else "")
            found.problems.append(
                f"'{name}' has {value.nan} NaN and {value.infinite} infinite values in valid rows "
                f"of shards {shards}. " + _again(stored, value.bad_shards)
            )
    return found


def _measure_shard(stored: Stored, shard: int, found: Measured, top: int, watchers: Sequence[Watcher]) -> None:
    start = stored.rows.rows(shard).start
    keys_N, valid_N = stored.keys_and_valid(shard)
    found.problems += _row_problems(stored, shard, keys_N, valid_N)
    usable_N = valid_N.copy()
    builder = None if stored.no_logits else BlockBuilder(len(keys_N), stored.num_classes)
    for watcher in watchers:
        watcher.begin(shard, start, keys_N, valid_N)
    for view in range(stored.rows.num_views):
        for name, rows, values in _parts(stored, shard, view):
            found.values[name].add(values[valid_N[rows]], shard)
            usable_N[rows] &= np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
            if name == "logits" and builder is not None:
                builder.add_view(values)
            for watcher in watchers:
                watcher.values(name, view, rows, values)
    if builder is not None:
        block = builder.block(shard, start, keys_N, usable_N, stored.labels(shard))
        found.soft = found.soft or SoftLabels(stored.num_classes, top)
        found.soft.add(block)
        for watcher in watchers:
            watcher.add(block)


def read_facts(stored: Stored, rows: Sequence[int]) -> dict[int, SampleFacts]:
    """What a reading remembers of samples, for these rows alone; those that are not usable are left out."""
    found: dict[int, SampleFacts] = {}
    for shard in sorted({row // stored.rows.shard_size for row in rows}):
        start = stored.rows.rows(shard).start
        keys_N, valid_N = stored.keys_and_valid(shard)
        wanted_N = np.zeros(len(keys_N), np.bool_)
        wanted_N[[row - start for row in rows if row // stored.rows.shard_size == shard]] = True
        labels = stored.labels(shard)
        if stored.no_logits:
            for i in np.flatnonzero(valid_N & wanted_N).tolist():
                found[start + i] = unmeasured(start + i, keys_N[i].decode("ascii"), labels[i] if labels else None)
            continue
        builder = BlockBuilder(len(keys_N), stored.num_classes)
        for view in range(stored.rows.num_views):
            builder.add_view(stored.logits(shard, view))
        block = builder.block(shard, start, keys_N, valid_N & wanted_N, labels)
        found |= {int(row): block.facts(i) for i, row in enumerate(block.rows_N.tolist())}
    return found


def _parts(stored: Stored, shard: int, view: int) -> Iterator[tuple[str, slice, Floats]]:
    """The targets of one shard and view, no more at a time than a chunk's rows; `logits` whole, derived where they are not stored."""
    count = stored.rows.rows(shard).stop - stored.rows.rows(shard).start
    derived = not stored.no_logits and all(target.name != "logits" for target in stored.rows.targets)
    for target in stored.rows.targets:
        step = count if target.name == "logits" else stored.rows.chunk_rows(target)
        if derived and target.name == "embedding":
            step = count
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            values = read_target(stored.root, stored.rows, shard, target.name, view, rows)
            yield target.name, rows, values
            if derived and target.name == "embedding":
                assert stored.vectors is not None
                yield "logits", rows, stored.vectors.logits(values)


def _again(stored: Stored, shards: list[int]) -> str:
    redo = stored.receipts.redo_hint(*shards)
    return f"Next: restore the store from a copy, or {redo}"


def _row_problems(stored: Stored, shard: int, keys_N: NDArray[np.bytes_], valid_N: NDArray[np.bool_]) -> list[str]:
    """Rows of a finished shard that contradict its receipt, or that have no key."""
    problems = []
    receipt = stored.receipts.receipt(shard)
    again = _again(stored, [shard])
    expected, found = (
        len(valid_N) if receipt is None else receipt.rows - len(receipt.invalid_rows),
        int(valid_N.sum()),
    )
    if expected != found:
        problems.append(f"shard {shard} has {found} valid rows, but its receipt says {expected}. {again}")
    if nameless := int((keys_N == b"").sum()):
        problems.append(f"shard {shard} has {counted(nameless, 'row')} without a key. {again}")
    return problems
