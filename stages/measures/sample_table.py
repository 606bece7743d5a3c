"""Owns the table of all samples of a store that `inspect --export` writes: CSV, Parquet or npy, shard by shard."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...pipeline.storage import Location, scratch_file
from ...storage_schemas.errors import IncompleteError, InputError
from .sample_block import SampleBlock
from .store_pass import Watcher
from .stored import Stored

#: Columns, in their order; text is UTF-8, numbers are fp32 except for row and class id, which are int64.
TEXT, FLOATS = ("key", "path", "label", "first_class"), ("confidence", "entropy", "agreement", "disagreement")
COLUMNS = ("row", *TEXT[:3], "class_id", TEXT[3], *FLOATS)

SCHEMA = pa.schema(
    [(name, pa.string() if name in TEXT else pa.float32() if name in FLOATS else pa.int64()) for name in COLUMNS]
)


class _Writer(Protocol):
    def write(self, columns: dict[str, list[Any]]) -> None: ...
    def finish(self) -> None: ...


class SampleTable(Watcher):
    """Writes a row for every usable sample while the store is read. Use as a context manager: the file appears at its end.

    Columns: `row`; `key`, `path` and `label` (empty where the shards are not at hand, or there is none); `class_id` and
    `first_class` of the largest mean probability over the views, `confidence`: that probability; `entropy`: mean over the views, in
    nats; `agreement`: share of the views whose own first class it is; `disagreement`: Jensen-Shannon divergence of the views, in nats.

    Args:
        stored: with logits.
        file: ends with .csv, .parquet or .npy. An npy is a structured array; its texts are UTF-8 bytes of one width each.

    Raises:
        InputError: another ending.
        IncompleteError: the store gives no logits.
    """

    def __init__(self, stored: Stored, file: Location | str) -> None:
        self._stored, self._location = stored, Location.of(file)
        makers: dict[str, Callable[[BinaryIO], _Writer]] = {".csv": _Csv, ".parquet": _Parquet, ".npy": _Npy}
        if self._location.suffix not in makers:
            raise InputError(
                "the table's form is told by the file's ending",
                code="export-form-unknown",
                where=self._location,
                expected=", ".join(makers),
                found=self._location.suffix or "none",
            )
        if stored.no_logits:
            raise IncompleteError(
                "there is nothing to tabulate",
                code="store-without-logits",
                where=stored.location,
                found=stored.no_logits,
            )
        self._make = makers[self._location.suffix]
        self.samples = 0

    def __enter__(self) -> SampleTable:
        self._context = self._location.create()
        self._writer = self._make(self._context.__enter__())
        return self

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is None:
            try:
                self._writer.finish()
            except BaseException as error:
                if not self._context.__exit__(type(error), error, error.__traceback__):
                    raise
                return
        self._context.__exit__(*exception)

    def add(self, block: SampleBlock) -> None:
        entries = None if self._stored.shards is None else self._stored.entries(block.shard)
        start = self._stored.rows.rows(block.shard).start
        offsets = (block.rows_N - start).tolist()
        self._writer.write(
            {
                "row": block.rows_N.tolist(),
                "key": [key.decode("ascii") for key in block.keys_N.tolist()],
                "path": ["" if entries is None else entries[i].path for i in offsets],
                "label": ["" if entries is None else entries[i].label or "" for i in offsets],
                "class_id": block.first_N.tolist(),
                "first_class": [self._stored.class_name(i) for i in block.first_N.tolist()],
                "confidence": block.confidence_N.tolist(),
                "entropy": block.entropy_N.tolist(),
                "agreement": block.agreement_N.tolist(),
                "disagreement": block.disagreement_N.tolist(),
            }
        )
        self.samples += len(block)


class _Csv:
    def __init__(self, file: BinaryIO) -> None:
        self._text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        self._writer = csv.writer(self._text)
        self._writer.writerow(COLUMNS)

    def write(self, columns: dict[str, list[Any]]) -> None:
        rounded = {name: [f"{v:.7g}" for v in values] if name in FLOATS else values for name, values in columns.items()}
        self._writer.writerows(zip(*(rounded[name] for name in COLUMNS), strict=True))

    def finish(self) -> None:
        self._text.flush()
        self._text.detach()


class _Parquet:
    def __init__(self, file: BinaryIO) -> None:
        self._writer = pq.ParquetWriter(file, SCHEMA, compression="zstd")

    def write(self, columns: dict[str, list[Any]]) -> None:
        self._writer.write_table(pa.table(columns, SCHEMA))

    def finish(self) -> None:
        self._writer.close()


class _Npy:
    """The header holds the number of rows and the widths of texts, which are known at the end: until then they wait in a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._blocks = scratch_file()
        self._lengths: list[int] = []
        self._widths = dict.fromkeys(TEXT, 1)
        self._dtypes: list[np.dtype[Any]] = []

    def write(self, columns: dict[str, list[Any]]) -> None:
        texts = {name: [text.encode() for text in columns[name]] for name in TEXT}
        widths = {name: max(map(len, found), default=1) or 1 for name, found in texts.items()}
        dtype = _dtype(widths)
        block = np.zeros(len(columns["row"]), dtype)
        for name in COLUMNS:
            block[name] = texts[name] if name in TEXT else columns[name]
        self._blocks.write(block.tobytes())
        self._lengths.append(len(block))
        self._dtypes.append(dtype)
        self._widths = {name: max(self._widths[name], width) for name, width in widths.items()}

    def finish(self) -> None:
        dtype = _dtype(self._widths)
        shape = (sum(self._lengths),)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(self._file, header)
        self._blocks.seek(0)
        for length, stored in zip(self._lengths, self._dtypes, strict=True):
            block = np.frombuffer(self._blocks.read(length * stored.itemsize), stored)
            self._file.write(block.astype(dtype).tobytes())
        self._blocks.close()


def _dtype(widths: dict[str, int]) -> np.dtype[Any]:
    fields = [(name, f"S{widths[name]}" if name in TEXT else "<f4" if name in FLOATS else "<i8") for name in COLUMNS]
    return np.dtype(fields)
