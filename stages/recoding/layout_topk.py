"""Owns the layout `topk`: Parquet with the most probable classes of each view, as DistillKit keeps those of tokens.

DistillKit (arcee-ai) has one row a sequence and a list for each token in it; here a row is a sample, and its views take the place of
tokens. Its `LogprobCompressor.decompress_to_sparse` takes plain rows (`token_ids`, `top_values`), or packed ones: `compressed_logprobs` are the k
numbers' bytes, little-endian, with `exact_k` = k, and `bytepacked_indices` the ids in ceil(log2 d) bits each, most significant bit first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.samples import shard_name
from .export import DTYPES, Exported, ExportShard, as_dtype
from .source import LOGITS
from .tables import lists, parquet_file, sample_columns, sample_fields
from .top_classes import top_classes

#: DistillKit's names of the types.
_TERMS = {"fp32": "float32", "fp16": "float16"}


@dataclass(frozen=True, kw_only=True)
class TopKLayout:
    """`data/SHARD.parquet`, and with `packed` `compression_config.yaml`, which DistillKit needs to unpack.

    Attributes:
        dtype: of the logarithms.
        top: k.
        packed: as bytes.
        num_classes: d.
    """

    dtype: str
    top: int
    packed: bool
    num_classes: int

    def to_json(self) -> Json:
        return {"layout": "topk", "dtype": self.dtype, "top": self.top, "packed": self.packed}

    def check(self, exported: Exported, where: object) -> None:
        if tuple(exported.shapes) != (LOGITS,):
            raise InputError(
                "this layout has room for logits alone",
                code="layout-has-no-room",
                where=f"{where}, --to topk",
                expected=LOGITS,
                found=", ".join(exported.shapes),
                hint="leave out --targets",
            )

    def beside(self, exported: Exported) -> dict[str, bytes]:
        if not self.packed:
            return {}
        lines = {
            "d": self.num_classes,
            "delta_encoding": "false",
            "error_diffusion": "false",
            "exact_dtype": _TERMS[self.dtype],
            "exact_k": self.top,
            "k": self.top,
            "normalize_t": "false",
            "polynomial_terms": "null",
            "residual_bins": "[]",
            "term_dtype": "float32",
        }
        text = "".join(f"{name}: {value}\n" for name, value in lines.items())
        return {"compression_config.yaml": text.encode()}

    @property
    def schema(self) -> Any:
        def two_lists(number: Any) -> Any:
            return pa.list_(pa.list_(number))

        if self.packed:
            own = [
                pa.field("compressed_logprobs", two_lists(pa.uint8())),
                pa.field("bytepacked_indices", two_lists(pa.uint8())),
            ]
        else:
            number = pa.from_numpy_dtype(DTYPES[self.dtype])
            own = [pa.field("token_ids", two_lists(pa.int32())), pa.field("top_values", two_lists(number))]
        return pa.schema([*sample_fields(), pa.field("views", pa.list_(pa.int32())), *own])

    def write(self, shard: ExportShard, folder: Location) -> list[str]:
        name = f"data/{shard_name(shard.number)}.parquet"
        with parquet_file(folder / name, self.schema) as file:
            for portion in shard.portions():
                ids_NVK, logs_NVK = top_classes(portion.targets[LOGITS], self.top)
                numbers = np.ascontiguousarray(as_dtype(logs_NVK, self.dtype, LOGITS))
                columns = sample_columns(portion)
                columns["views"] = [list(portion.views)] * len(portion)
                if self.packed:
                    columns["compressed_logprobs"] = lists(
                        numbers.astype(numbers.dtype.newbyteorder("<")).view(np.uint8)
                    )
                    columns["bytepacked_indices"] = lists(pack(ids_NVK, bits_of(self.num_classes)))
                else:
                    columns |= {"token_ids": lists(ids_NVK), "top_values": lists(numbers)}
                file.write(columns)
        return [name]


def bits_of(num_classes: int) -> int:
    """Bits of an id: at least one."""
    return max(1, (num_classes - 1).bit_length())


def pack(ids: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """uint8 (…, ceil(k bits / 8)) of ids (…, k): the bits of one after the other, the most significant first, zeros at the end."""
    places = np.arange(bits - 1, -1, -1)
    flat = ((ids[..., None] >> places) & 1).astype(np.uint8).reshape(*ids.shape[:-1], -1)
    return np.packbits(flat, axis=-1)
