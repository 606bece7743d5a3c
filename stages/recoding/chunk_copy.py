"""Owns the copying of a shard whose files are the same in both stores: bytes for bytes, nothing decoded."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

from ...pipeline.storage import Location
from ...storage_schemas.receipt import Output
from ...storage_schemas.verified_store import NOT_OF_ROWS
from .source import SourceReader


class ChunkCopy:
    """From a store that is read to one that is written.

    Args:
        source: of the first.
        out: where the second lies.
        root: its root group.
    """

    def __init__(self, source: SourceReader, out: Location, root: Any) -> None:
        self._source, self._out, self._root = source, out, root

    @cached_property
    def is_possible(self) -> bool:
        """Whether both have the same arrays of rows: then the same values are the same bytes."""
        return _described(self._source.source_root) == _described(self._root)

    def shard(self, number: int) -> tuple[Output, ...]:
        """Copy all files of a shard, durably; what a receipt says of them.

        Raises:
            DamagedError: a file is not the one that the store's receipt vouches for.
        """
        receipts, outputs = self._source.receipts, []
        for path, output in receipts.outputs(number).items():
            try:
                data = (receipts.store / output.path).read_bytes()
            except FileNotFoundError as error:
                raise receipts.damaged(path, number, "no such chunk") from error
            if (found := hashlib.sha256(data).hexdigest()) != output.sha256:
                raise receipts.damaged(path, number, f"sha256 {found}")
            (self._out / path).write_bytes(data)
            outputs.append(Output(path=path, bytes=len(data), sha256=found))
        return tuple(outputs)


def _described(root: Any) -> dict[str, Any]:
    """All of what Zarr says of the arrays of rows, but for their attributes."""
    arrays = {name: array.metadata.to_dict() for name, array in root.arrays() if not name.startswith(NOT_OF_ROWS)}
    return {name: {key: value for key, value in said.items() if key != "attributes"} for name, said in arrays.items()}
