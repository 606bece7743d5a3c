"""Owns the layout `parquet`: one row a sample and view, with its targets as lists of one length."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ...pipeline.storage import Location
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.samples import shard_name
from .export import DTYPES, Exported, ExportShard, as_dtype
from .tables import fixed_lists, parquet_file, view_columns, view_fields


@dataclass(frozen=True, kw_only=True)
class ParquetLayout:
    """`data/SHARD.parquet`.

    Attributes:
        dtype: of the numbers.
        exported: what the columns are.
    """

    dtype: str
    exported: Exported

    def to_json(self) -> Json:
        return {"layout": "parquet", "dtype": self.dtype}

    def check(self, exported: Exported, where: object) -> None:
        """It has room for everything."""

    def beside(self, exported: Exported) -> dict[str, bytes]:
        return {}

    @property
    def schema(self) -> Any:
        number = pa.from_numpy_dtype(DTYPES[self.dtype])
        targets = []
        for name, shape in self.exported.shapes.items():
            width = 1
            for size in shape:
                width *= size
            shape_text = {"shape": json.dumps(list(shape))}
            targets.append(pa.field(name, pa.list_(number, width), nullable=False, metadata=shape_text))
        return pa.schema([*view_fields(self.exported.colors), *targets])

    def write(self, shard: ExportShard, folder: Location) -> list[str]:
        name = f"data/{shard_name(shard.number)}.parquet"
        with parquet_file(folder / name, self.schema) as file:
            for portion in shard.portions():
                columns = view_columns(portion, self.exported.colors)
                for target, values in portion.targets.items():
                    flat = values.reshape(len(portion) * len(portion.views), -1)
                    columns[target] = fixed_lists(as_dtype(flat, self.dtype, target))
                file.write(columns)
        return [name]
