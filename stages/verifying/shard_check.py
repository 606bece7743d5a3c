"""Owns the check of one shard beside a target store: receipts and sizes; with every byte: its tar, its chunks, its rows and its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import DamagedError, TeachonceError
from ...storage_schemas.held_store import HeldStore
from ...storage_schemas.receipt import Receipt
from ...storage_schemas.store_description import StoreSpec, TargetSpec
from ...storage_schemas.target_store import (
    OpenArrays,
    chunk_paths,
    decode_views,
    open_root,
    read_marks,
    read_params,
    read_stored_views,
)
from ...storage_schemas.view_params import Views
from ..corpora.images import BadImage
from ..corpora.shards import ShardReader
from ..pairs.store import shown_store
from ..samples.kind import draw_views
from ..samples.pixel_sample import PixelSample
from ..samples.registry import kind_named
from .block_digest import BlockDigest
from .chunks import ChunkCheck, ChunksRead, wrong_sizes
from .finding import Findings
from .receipts import checked_store_receipt, digest_error
from .repair_hint import repair_command
from .rows import RowsCheck, unusable_rows_error, views_error
from .shard_rows import ShardRows
from .shard_seen import ShardSeen
from .stored_loss import is_exact, is_fine, is_plain
from .tar_side import TarSide
from .values import ValuesSeen
from .whole import Whole

#: Rows of a shard whose stored views are drawn again.
_DRAWN = 1

#: Groups of rows with the same values whose images are looked at.
_GROUPS = 3


@dataclass(kw_only=True)
class ShardCheck:
    """Looks at one shard after another, in several threads at once.

    Attributes:
        whole: what belongs together.
        full: whether every byte is read.
        renders: whether this machine's rendering of views is compared with the store's.
    """

    whole: Whole
    full: bool
    renders: bool = True

    def __post_init__(self) -> None:
        whole = self.whole
        self._kind = kind_named(whole.description.sample_kind, where=whole.store)
        self._held = HeldStore(shown_store(whole.store, whole.generation)[0])
        self._root = OpenArrays(open_root(self._held, where=whole.store))
        self._tars = TarSide(shards=whole.shards, full=self.full)

    def close(self) -> None:
        self._tars.close()

    def look_at(self, shard: int) -> ShardSeen:
        """Everything that is wrong with one shard. What is wrong is returned, never raised."""
        with self._tars.one_more():
            return self._look_at(shard)

    def of_whole(self) -> Iterator[TeachonceError]:
        """This machine must render the views that the store keeps digests of as the teacher saw them."""
        whole = self.whole
        sample = PixelSample.of_store(whole.description, whole.store) if self.renders else None
        if sample is not None:
            hint = "look at it where it was made; or cache again into a new store"
            try:
                sample.check(whole.shards, whole.views, where=whole.store, hint=hint)
            except DamagedError:
                pass  # whatever is wrong with a tar is found with its shard
            except TeachonceError as error:
                yield error

    def _look_at(self, shard: int) -> ShardSeen:
        seen, findings = ShardSeen(shard), Findings()
        known, tar_receipt = self._tars.look_at(shard, seen, findings)
        try:
            self._store_side(shard, tar_receipt, known, seen, findings, is_tar_right=not findings)
        except TeachonceError as error:
            findings.note(error, shard=shard, mendable=isinstance(error, DamagedError))
        seen.findings = list(findings)
        return seen

    @cached_property
    def _mend(self) -> str:
        """What to do about a wrong shard of the store; the teacher's name is added where the store does not hold it."""
        if self.whole.receipts.growths:
            return "restore it from a copy"
        return f"restore it from a copy, or {repair_command(self.whole.shards, self.whole.store)}"

    # The store.

    def _store_side(
        self,
        shard: int,
        tar_receipt: Receipt | None,
        known: ShardRows | None,
        seen: ShardSeen,
        findings: Findings,
        *,
        is_tar_right: bool,
    ) -> None:
        whole = self.whole
        spec, receipts = whole.description.spec, whole.receipts
        rows = spec.rows(shard)
        paths = chunk_paths(spec, shard)
        receipt = checked_store_receipt(receipts, shard, range(rows.start, rows.stop), paths, mend=self._mend)
        outputs, ledgers = receipts.outputs(shard), list(receipts.ledgers_of(shard))
        where = f"{whole.store}, shard {shard}"
        if tar_receipt is not None and (other := unusable_rows_error(tar_receipt, receipt, where, self._mend)):
            findings.note(other, shard=shard, mendable=True)
        if not self.full:
            for size_error in wrong_sizes(whole.store, outputs, self._mend):
                findings.note(size_error, shard=shard, mendable=True)
            return
        check = ChunkCheck(store=whole.store, ledgers=ledgers, receipt=receipt, outputs=outputs, hint=self._mend)
        read = ChunksRead()
        wrong: list[TeachonceError] = []
        large = {name for target in spec.targets for name in _large_arrays(spec, target)}
        small = check.read([path for path in paths if path.partition("/")[0] not in large], read)
        with self._held.holding(small):
            exact = all(is_exact(spec, target.name) for target in spec.targets)
            # A receipt of a part of a block has the digest of that part; each chunk has its sha256 anyway.
            digest = BlockDigest() if exact and not read.damage and len(ledgers) == 1 else None
            valid_N: NDArray[np.bool_] | None = None
            if not read.damage:
                marks = keys_N, valid_N = read_marks(self._root, spec, shard)
                check_rows = self._rows_check(known, receipt, where)
                if check_rows is not None:
                    wrong += [*check_rows.keys(keys_N, whole.shards, shard), *check_rows.usable(valid_N)]
                if wrong and spec.drawing is not None:
                    digest = None  # views are derived of what is wrong
                else:
                    params_NV = read_params(self._root, spec, shard, range(spec.num_views), marks)
                    if check_rows is not None and not wrong:
                        wrong += self._look_at_views(shard, check_rows, valid_N, params_NV, is_tar_right)
                    if digest is not None:
                        digest.rows([key.decode("ascii", "replace") for key in keys_N], valid_N, params_NV)
            for target in sorted(spec.targets, key=lambda t: t.name):
                wrong += self._look_at_target(shard, target, check, read, digest, valid_N, where, paths)
        seen.num_bytes += read.num_bytes
        if check.is_stale(read):
            findings.note(check.stale_error(), shard=shard, mendable=True)
            return
        for damage in read.damage:
            findings.note(damage, shard=shard, mendable=True)
        for error in wrong:
            findings.note(error, shard=shard, mendable=True)
        if digest is not None and not read.damage and digest.hexdigest() != receipt.digest:
            other_digest = digest_error(receipt, digest.hexdigest(), where=where, mend=self._mend)
            findings.note(other_digest, shard=shard, mendable=True)

    def _rows_check(self, known: ShardRows | None, receipt: Receipt, where: str) -> RowsCheck | None:
        """None where the manifest does not say what the rows are."""
        if known is None:
            return None
        return RowsCheck(
            where=where,
            rows=known,
            unusable=frozenset(bad.row for bad in receipt.invalid_rows),
            hint=self._mend,
        )

    def _look_at_views(
        self, shard: int, check: RowsCheck, valid_N: NDArray[np.bool_], params_NV: Views, is_tar_right: bool
    ) -> Iterator[TeachonceError]:
        """`params_NV`: VIEW (sample, view), as the store has them."""
        errors = list(check.viewed(valid_N, params_NV[:, 0]))
        yield from errors
        if errors or not is_tar_right:
            return
        reader = ShardReader(self.whole.shards, shard)
        try:
            for offset in np.flatnonzero(valid_N)[:_DRAWN].tolist():
                row = check.rows.first_row + offset
                error = self._views_error(reader, shard, row, params_NV[offset], check.where)
                if error is not None:
                    yield error
                    return
        finally:
            reader.close()

    def _views_error(
        self, reader: ShardReader, shard: int, row: int, stored_V: Views, where: str
    ) -> TeachonceError | None:
        key = reader.key(row)
        try:
            sample = self._kind.decode(reader.read(row), self.whole.shards.corpus.max_pixels)
        except BadImage as bad:
            return DamagedError(
                "an image that the teacher saw cannot be read any more",
                code="image-no-longer-readable",
                where=f"{where}, row {row}",
                found=bad,
                hint="use the versions of the libraries that the store was made with",
            )
        drawn_V = self._kind.params(sample, key, self.whole.views)
        size = getattr(sample, "size", (0, 0))
        return views_error(
            stored_V, drawn_V, self.whole.views, key=key, size=size, where=f"{where}, row {row}", hint=self._mend
        )

    def _look_at_target(
        self,
        shard: int,
        target: TargetSpec,
        check: ChunkCheck,
        read: ChunksRead,
        digest: BlockDigest | None,
        valid_N: NDArray[np.bool_] | None,
        where: str,
        paths: Sequence[str],
    ) -> Iterator[TeachonceError]:
        """Its chunks are read and decoded some rows at a time: no more than `cache` held when it wrote them."""
        spec = self.whole.description.spec
        rows, step = spec.rows(shard), spec.chunk_rows(target)
        count = rows.stop - rows.start
        arrays = _large_arrays(spec, target)
        own = [path for path in paths if path.partition("/")[0] in arrays]
        teacher = self.whole.description.teacher
        seen = ValuesSeen(target.name, rows.start, target.name == "embedding" and teacher.get("normalized") is True)
        part_digest = None if digest is None else digest.target(streamed=spec.is_streamed(target))
        is_whole = True
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            number = (rows.start + start) // step if spec.is_streamed(target) else shard
            here = [path for path in own if int(path.split("/")[2]) == number]
            held = check.read(here, read)
            is_whole = is_whole and len(held) == len(here)
            if valid_N is None or not is_whole:
                continue
            with self._held.holding(held):
                stored = read_stored_views(self._root, spec, shard, target.name, range(spec.num_views), part)
            if part_digest is not None or not is_plain(spec, target.name):
                values = decode_views(spec, target.name, stored)
                seen.add(values, valid_N[part], start)
                if part_digest is not None:
                    part_digest(values)
            else:  # plain numbers can be looked at as they are
                numbers = stored.pop(target.name)
                seen.add(numbers, valid_N[part], start, beside=next(iter(stored.values()), None))
        if valid_N is not None and is_whole:
            yield from seen.errors(where, self._mend, alike_means_something=self._is_fine(target.name))
            yield from self._repeated(shard, target.name, seen, where)

    def _is_fine(self, name: str) -> bool:
        return is_fine(self.whole.lost[name], self.whole.description.spec, name)

    def _repeated(self, shard: int, name: str, seen: ValuesSeen, where: str) -> Iterator[TeachonceError]:
        """Rows with the same values, whose views do not look the same. (Images of one colour, and copies, may well be alike.)"""
        if not self._is_fine(name) or len(seen.by_digest) == 1:
            return
        for rows in seen.repeated[:_GROUPS]:
            pair = [seen.first_row + row for row in rows[:2]]
            if not self._look_alike(shard, pair):
                yield DamagedError(
                    f"rows of '{name}' have the same values, and images that differ",
                    code="values-repeated",
                    where=f"{where}, rows {pair[0]} and {pair[1]}",
                    hint=self._mend,
                )
                return

    def _look_alike(self, shard: int, rows: Sequence[int]) -> bool:
        """Whether the first views of two rows have the same pixels."""
        shards, seen = self.whole.shards, []
        size = int((self.whole.description.teacher.get("preprocess") or {}).get("size", 64))
        reader = ShardReader(shards, shard)
        try:
            for row in rows:
                sample = self._kind.decode(reader.read(row), shards.corpus.max_pixels)
                params = self._kind.params(sample, reader.key(row), self.whole.views)[:1]
                seen.append(draw_views(self._kind, sample, params, size, self.whole.views).tobytes())
        except (BadImage, TeachonceError):
            return True  # whatever is wrong with the tar is found there
        finally:
            reader.close()
        return seen[0] == seen[1]


def _large_arrays(spec: StoreSpec, target: TargetSpec) -> set[str]:
    """The arrays that hold a target's values row by row; what lies beside them is small, and a shard's is one chunk."""
    return {array.name for array in spec.encoding_of(target).arrays(target) if not array.beside}
