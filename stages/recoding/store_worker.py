"""Owns what one worker of `recode` does where the output is a store: one shard after another, as chosen, encoded anew."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...pipeline.ledger import record_outputs
from ...pipeline.storage import Location
from ...pipeline.types import Timer, Unit
from ...storage_schemas.encodings import is_exact
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.receipt import Output, Receipt
from ...storage_schemas.store_description import StoreSpec
from ...storage_schemas.target_store import BlockWriter, chunk_paths, decode_views
from .chunk_copy import ChunkCopy, TargetCopy
from .source import LOGITS, SourceReader, SourceShard


@dataclass(frozen=True, kw_only=True)
class StoreWorker:
    """Writes shards of a store.

    Attributes:
        reader: of the store that is recoded.
        out, root: the new store.
        spec: of its rows.
        fingerprint: digest of the stage's.
    """

    reader: SourceReader
    out: Location
    root: Any
    spec: StoreSpec
    fingerprint: str

    def __call__(self, unit: Unit, timer: Timer) -> Receipt:
        number = unit.inputs["shard"]
        with timer("read"):
            shard = self.reader.shard(number)
        as_stored = [name for name in self.reader.source.targets if self._stays(name)]
        known = shard.receipt.digest if self._has_content_of(shard, as_stored) else None
        if known and len(as_stored) == len(self.reader.source.targets) and self._copy.is_possible:
            with timer("write"):
                outputs, digest = self._copy.shard(number).all(), known
            timer.advance(len(shard))
        else:
            outputs, digest = self._write(shard, as_stored, known, timer)
        return Receipt(
            key=unit.key,
            outputs=outputs,
            rows=unit.rows,
            invalid_rows=shard.invalid,
            digest=digest,
            fingerprint=self.fingerprint,
        )

    @cached_property
    def _copy(self) -> ChunkCopy:
        return ChunkCopy(self.reader, self.out, self.root)

    def _write(
        self, shard: SourceShard, as_stored: list[str], known: str | None, timer: Timer
    ) -> tuple[tuple[Output, ...], str]:
        """Write a shard's rows, array by array; what a receipt says of the files, and of what is in them.

        Args:
            as_stored: targets whose arrays stay as they are.
            known: the digest, where the values are those of the old store.
        """
        copies = self._copies(shard, as_stored)
        elsewhere = {array for copy in copies.values() for array in copy.arrays}
        writer = BlockWriter(self.root, self.spec, shard.number, shard.keys, elsewhere=elsewhere)
        taken_N = np.zeros(len(shard), np.bool_)
        taken_N[shard.taken] = True
        with timer("read"):
            sizes_N2 = None if self.spec.drawing is None else shard.sizes()
        for part in shard.parts(self.spec):
            sizes = None if sizes_N2 is None else sizes_N2[part]
            left_N = ~taken_N[part]
            with timer("read"):
                stored = {
                    name: copies[name].stored(part) if name in copies else shard.stored(name, part)
                    for name in as_stored
                }
                targets = {} if known else {n: decode_views(self.reader.source.spec, n, s) for n, s in stored.items()}
                targets |= {n: shard.target(n, part) for n in self.reader.source.targets if n not in stored}
            with timer("write"):
                for values in targets.values():
                    values[left_N] = np.nan
                for name, arrays in stored.items():
                    self._leave_out(name, arrays, left_N)
                writer.put_rows(part.start, taken_N[part], shard.params[part], targets, stored, sizes)
                writer.settle(part.stop)
            timer.advance(part.stop - part.start)
        self._refuse_nonfinite(writer)
        with timer("write"):
            paths, digest = writer.finish(known)
            written = [
                *record_outputs(self.out, paths),
                *(output for copy in copies.values() for output in copy.outputs),
            ]
        by_path = {output.path: output for output in written}
        return tuple(by_path[path] for path in chunk_paths(self.spec, shard.number)), digest

    def _copies(self, shard: SourceShard, as_stored: list[str]) -> dict[str, TargetCopy]:
        """Targets some of whose files are the same in both stores: where all rows are taken, those of views that share their chunks."""
        if shard.invalid != shard.receipt.invalid_rows:
            return {}
        copied = self._copy.shard(shard.number)
        copies = {name: copied.target(name) for name in as_stored}
        return {name: copy for name, copy in copies.items() if copy.arrays}

    def _stays(self, name: str) -> bool:
        """Whether a target's arrays are written as they are: encoded anew, what was rounded or drawn once would be so again."""
        source = self.reader.source
        if name == LOGITS and source.vectors is not None:
            return False
        before, after = source.spec.target(name), self.spec.target(name)
        return before.shape == after.shape and source.spec.encoding_of(before) == self.spec.encoding_of(after)

    def _leave_out(self, name: str, arrays: dict[str, Any], left_N: Any) -> None:
        """Put the fill value into rows that are not taken."""
        if left_N.any():
            target = self.spec.target(name)
            for array in self.spec.encoding_of(target).arrays(target):
                arrays[array.name] = np.array(arrays[array.name])
                arrays[array.name][left_N] = array.fill

    def _has_content_of(self, shard: SourceShard, as_stored: list[str]) -> bool:
        """Whether the values are those that the shard's receipt has the digest of, every one: encodings do not count there."""
        source, old = self.reader.source, self.reader.source.spec

        def is_same(name: str) -> bool:
            before, after = old.target(name), self.spec.target(name)
            same = name in as_stored or is_exact(old.encoding_of(before))
            return same and old.is_streamed(before) == self.spec.is_streamed(after)

        return (
            self.reader.is_in_one(shard.number)
            and source.views == tuple(range(old.num_views))
            and not (LOGITS in source.targets and source.vectors is not None)
            and sorted(source.targets) == sorted(target.name for target in old.targets)
            and shard.invalid == shard.receipt.invalid_rows
            and all(map(is_same, source.targets))
        )

    def _refuse_nonfinite(self, writer: BlockWriter) -> None:
        for name, bad in writer.nonfinite.items():
            raise DamagedError(
                "the store has NaN or infinity in usable rows",
                code="store-not-finite",
                where=f"{self.reader.source.store}, {name}, shard {writer.shard}",
                found=f"{bad} such rows",
                hint=f"see `teachonce inspect {self.reader.source.store}`",
            )
