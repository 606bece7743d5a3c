"""Owns tables of exports: the columns that say which sample and view a row is, and Parquet files of the same bytes every time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.view_params import BOX, COLOR_CHOICES, COLOR_FACTORS, Views
from .export import Portion

_SAMPLE: list[Any] = [
    pa.field("key", pa.string(), nullable=False),
    pa.field("path", pa.string()),
    pa.field("label", pa.string()),
    pa.field("row", pa.int64(), nullable=False),
]

_TYPES: dict[str, Any] = {"flip": pa.bool_(), "grayscale": pa.bool_(), **dict.fromkeys(COLOR_FACTORS, pa.float32())}


def sample_fields() -> list[Any]:
    """Columns of a row that is a sample."""
    return list(_SAMPLE)


def view_fields(colors: bool) -> list[Any]:
    """Columns of a row that is a view of a sample."""
    names = BOX + (COLOR_CHOICES + COLOR_FACTORS if colors else ())
    params = [pa.field(name, _TYPES.get(name, pa.int32()), nullable=False) for name in names]
    return [*_SAMPLE, pa.field("view", pa.int32(), nullable=False), *params]


def sample_columns(portion: Portion, times: int = 1) -> dict[str, Any]:
    """The columns of `sample_fields`; each sample so many times."""

    def repeated(values: list[Any]) -> list[Any]:
        return values if times == 1 else [value for value in values for _ in range(times)]

    return {
        "key": repeated(list(portion.keys)),
        "path": repeated([None if entry is None else entry.path for entry in portion.entries]),
        "label": repeated([None if entry is None else entry.label for entry in portion.entries]),
        "row": repeated(list(portion.rows)),
    }


def view_columns(portion: Portion, colors: bool) -> dict[str, Any]:
    """The columns of `view_fields`: views of the first sample, then those of the second, …"""
    flat: Views = portion.params.reshape(-1)
    names = BOX + (COLOR_CHOICES + COLOR_FACTORS if colors else ())
    params = {name: flat[name].astype(bool) if _TYPES.get(name) == pa.bool_() else flat[name] for name in names}
    return {
        **sample_columns(portion, len(portion.views)),
        "view": np.tile(np.array(portion.views, np.int32), len(portion)),
        **{name: np.ascontiguousarray(values) for name, values in params.items()},
    }


def fixed_lists(values: NDArray[Any]) -> Any:
    """Arrow's lists of one length, of an array (row, number)."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def lists(values: NDArray[Any]) -> Any:
    """Arrow's lists of lists, of an array (row, list, number)."""
    rows, many, width = values.shape
    inner = _lists_of(pa.array(np.ascontiguousarray(values).reshape(-1)), rows * many, width)
    return _lists_of(inner, rows, many)


def _lists_of(values: Any, count: int, width: int) -> Any:
    ends: Any = pa.array(np.arange(count + 1, dtype=np.int32) * np.int32(width), pa.int32())
    return pa.ListArray.from_arrays(ends, values)


@contextlib.contextmanager
def parquet_file(location: Location, schema: Any) -> Iterator[Any]:
    """A Parquet file that is there once it is whole. `write(columns)` on what this yields adds a row group."""
    texts: Any = [field.name for field in schema if field.type == pa.string()]
    with (
        location.create() as file,
        pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=texts, write_page_checksum=True) as writer,
    ):
        yield _RowGroups(writer, schema)


class _RowGroups:
    def __init__(self, writer: Any, schema: Any) -> None:
        self._writer, self._schema = writer, schema

    def write(self, columns: dict[str, Any]) -> None:
        table = pa.table(columns, schema=self._schema)
        if table.num_rows:
            self._writer.write_table(table, row_group_size=table.num_rows)
