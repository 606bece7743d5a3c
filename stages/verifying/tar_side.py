"""Owns the check of one shard in its folder: its receipt, and its files' sizes; with every byte: its tar beside the manifest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.cores import usable_cores
from ...storage_schemas.errors import DamagedError, TeachonceError
from ...storage_schemas.receipt import Receipt
from ...storage_schemas.samples import shard_name
from ..corpora.shards import ShardReader, ShardSet
from .finding import Findings
from .receipts import checked_receipt, other_files
from .shard_rows import ShardRows
from .shard_seen import ShardSeen
from .tars import TarCheck
from .vouched_file import VouchedFile


@dataclass(kw_only=True)
class TarSide:
    """Looks at one shard after another, in several threads at once.

    Attributes:
        full: whether every byte is read.
    """

    shards: ShardSet
    full: bool

    def __post_init__(self) -> None:
        self._hashing = ThreadPoolExecutor(thread_name_prefix="sha256")
        self._num_now, self._counting = 0, threading.Lock()

    def close(self) -> None:
        self._hashing.shutdown()

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Inside, a shard more is looked at."""
        with self._counting:
            self._num_now += 1
        try:
            yield
        finally:
            with self._counting:
                self._num_now -= 1

    @property
    def _idle_threads(self) -> ThreadPoolExecutor | None:
        """Threads that hash, while there are more cores than shards that are looked at: handing over to them costs time too."""
        return self._hashing if self._num_now < usable_cores() else None

    def look_at(self, shard: int, seen: ShardSeen, findings: Findings) -> tuple[ShardRows | None, Receipt | None]:
        """What the manifest has of a shard's rows, and the shard's receipt; None where they are wrong. What is wrong is noted."""
        known: ShardRows | None = None
        try:
            known = self._rows(shard)
            return known, self._files(shard, known, seen, findings)
        except TeachonceError as error:
            findings.note(error, shard=shard)
            return known, None

    def _files(self, shard: int, known: ShardRows, seen: ShardSeen, findings: Findings) -> Receipt:
        shards, name = self.shards, shard_name(shard)
        rows = shards.corpus.rows(shard)
        receipt = checked_receipt(shards.ledger_of(shard), shard, rows, [f"{name}.tar", f"{name}.index.npy"])
        files = {
            output.path: VouchedFile(
                noun="tar" if output.path.endswith(".tar") else "offset index",
                place=shards.file(shard, output),
                output=output,
                hint=shards.redo_hint(shard, output),
            )
            for output in receipt.outputs
        }
        wrong = [error for file in files.values() if (error := file.size_error()) is not None]
        if self.full and not any(error.code == "file-missing" for error in wrong):
            self._read_tar(shard, known, files, seen, findings)
            return receipt
        for error in wrong:
            findings.note(error, shard=shard)
        return receipt

    def _rows(self, shard: int) -> ShardRows:
        rows = self.shards.corpus.rows(shard)
        known = ShardRows.of(self.shards.manifest(), shard, rows.start)
        if len(known) != len(rows):
            raise DamagedError(
                "the manifest has another number of rows for a shard",
                code="manifest-other-rows",
                where=f"{self.shards.location}/manifest.parquet, shard {shard}",
                expected=len(rows),
                found=len(known),
                hint="restore it from a copy",
            )
        return known

    def _read_tar(
        self,
        shard: int,
        known: ShardRows,
        files: dict[str, VouchedFile],
        seen: ShardSeen,
        findings: Findings,
    ) -> None:
        """Every byte of the tar and its index."""
        shards, name = self.shards, shard_name(shard)
        tar = files[f"{name}.tar"]
        index: NDArray[np.void] | None = None
        try:
            reader = ShardReader(shards, shard)
            index = reader.index
            reader.close()
            seen.num_bytes += files[f"{name}.index.npy"].output.bytes
        except DamagedError as error:
            if error.code not in ("shard-file-changed", "tar-in-place-changed"):
                findings.note(error, shard=shard)
        check = TarCheck(
            tar=tar.place,
            index=index,
            rows=known,
            sha256=tar.output.sha256,
            reduced=shards.corpus.resize is not None,
            hint=tar.hint,
            in_place=bool(tar.output.place),
        )
        read = check.read(self._idle_threads)
        seen.num_bytes += read.num_bytes
        for path, file in files.items():
            if path.endswith(".tar"):
                found = file.error(
                    found_bytes=read.num_bytes,
                    found_sha256=read.sha256,
                    others=_Others(shards.ledger_of(shard), shard, ".tar"),
                    flipped=read.flipped if read.num_wrong == 1 else "",
                )
            else:
                found = file.size_error()
            if found is not None:
                findings.note(found, shard=shard)
                if found.code in ("file-bit-flipped", "file-of-another-shard"):
                    read.wrong.clear()  # that is the cause
        for wrong in read.wrong:
            findings.note(wrong, shard=shard)


class _Others(dict[str, str]):
    """The sha256 of other shards' files, read when the first one is asked for."""

    def __init__(self, *about: Any) -> None:
        super().__init__()
        self._about: Any = about

    def get(self, key: str, default: Any = None) -> Any:
        if self._about is not None:
            self.update(other_files(*self._about))
            self._about = None
        return super().get(key, default)
