"""Owns the layout `npy`: arrays that a program maps into memory, with tables beside, as clip-retrieval has them.

clip-retrieval's inference writes `img_emb/img_emb_N.npy` (image, channel) and `metadata/metadata_N.parquet` with a column `image_path`, and its
index reads them in the order of their names. Here a row is a view of a sample.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ...pipeline.storage import Location
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.samples import shard_name
from .export import DTYPES, Exported, ExportShard, as_dtype
from .tables import parquet_file, view_columns, view_fields

#: Names of arrays that the other program knows by another name.
_NAMES = {"embedding": "img_emb"}


@dataclass(frozen=True, kw_only=True)
class NpyLayout:
    """`ARRAY/ARRAY_SHARD.npy` (sample and view, …) and `metadata/metadata_SHARD.parquet`, with the same rows.

    Attributes:
        dtype: of the numbers.
        exported: shapes of the arrays.
    """

    dtype: str
    exported: Exported

    def to_json(self) -> Json:
        return {"layout": "npy", "dtype": self.dtype}

    def check(self, exported: Exported, where: object) -> None:
        """It has room for everything."""

    def beside(self, exported: Exported) -> dict[str, bytes]:
        return {}

    @property
    def schema(self) -> Any:
        fields = [field.with_name("image_path") if field.name == "path" else field for field in self._view_fields()]
        return pa.schema(fields)

    def _view_fields(self) -> list[Any]:
        return view_fields(self.exported.colors)

    def write(self, shard: ExportShard, folder: Location) -> list[str]:
        number, rows = shard_name(shard.number), len(shard) * self.exported.num_views
        files = {name: f"{_array(name)}/{_array(name)}_{number}.npy" for name in self.exported.shapes}
        table_name = f"metadata/metadata_{number}.parquet"
        with contextlib.ExitStack() as opened:
            arrays = {name: opened.enter_context((folder / file).create()) for name, file in files.items()}
            for name, shape in self.exported.shapes.items():
                header = {"descr": _descr(self.dtype), "fortran_order": False, "shape": (rows, *shape)}
                np.lib.format.write_array_header_1_0(arrays[name], header)
            table = opened.enter_context(parquet_file(folder / table_name, self.schema))
            for portion in shard.portions():
                for name, values in portion.targets.items():
                    arrays[name].write(np.ascontiguousarray(as_dtype(values, self.dtype, name)).tobytes())
                columns = view_columns(portion, self.exported.colors)
                columns["image_path"] = columns.pop("path")
                table.write(columns)
        return [*files.values(), table_name]


def _array(target: str) -> str:
    return _NAMES.get(target, target)


def _descr(dtype: str) -> Any:
    return np.lib.format.dtype_to_descr(np.dtype(DTYPES[dtype]).newbyteorder("<"))
