"""Owns the copying of chunks whose files are the same in both stores: bytes for bytes, not encoded anew."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.held_store import HeldStore
from ...storage_schemas.receipt import Output
from ...storage_schemas.target_store import OpenArrays, array_names, open_root, read_stored_views
from ...storage_schemas.verified_store import NOT_OF_ROWS, VerifiedStore
from ..pairs.store import shown_store
from .source import SourceReader

#: Where the number of a chunk along the axis of views stands in its path, ARRAY/c/ROWS/VIEWS/….
_VIEWS = 3


class ChunkCopy:
    """From a store that is read to one that is written.

    Args:
        source: of the first.
        out: where the second lies.
        root: its root group.

    Attributes:
        decoded: the arrays of the first; files that are held (`holding`) are not read again.
    """

    def __init__(self, source: SourceReader, out: Location, root: Any) -> None:
        self.source, self.out, self._root = source, out, root
        held = HeldStore(VerifiedStore(*shown_store(source.source.store, source.source.generation)))
        self.decoded = OpenArrays(open_root(held, where=source.source.store))
        self.holding = held.holding

    def shard(self, number: int) -> ShardCopy:
        return ShardCopy(self, number)

    @cached_property
    def is_possible(self) -> bool:
        """Whether both have the same arrays of rows: then the same values are the same bytes."""
        old, new = self._described
        return old == new

    @cached_property
    def _described(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return _described(self.source.source_root), _described(self._root)

    def view_chunks(self, target: str) -> dict[str, dict[int, int]]:
        """Arrays of a target whose chunks of the taken views are chunks of both stores: of each, its chunks along the views there and here.

        Both stores have the target in the same encoding.
        """
        found: dict[str, dict[int, int]] = {}
        old, new = self._described
        source = self.source.source
        for array in array_names(source.spec, [target]):
            if _but_for_views(old[array]) == _but_for_views(new[array]):
                together = new[array]["chunk_grid"]["configuration"]["chunk_shape"][1]
                chunks = same_chunks(source.views, source.spec.num_views, together)
                found |= {} if chunks is None else {array: chunks}
        return found


class ShardCopy:
    """Files of one shard, which are compared with what the receipts of the old store say of them."""

    def __init__(self, copy: ChunkCopy, number: int) -> None:
        self._copy, self.number = copy, number
        self._outputs = copy.source.receipts.outputs(number)

    def all(self) -> tuple[Output, ...]:
        """Copy all files, durably; what a receipt says of them.

        Raises:
            DamagedError: a file is not the one that the store's receipt vouches for.
        """
        return tuple(self.write(path, path, self.read(path)) for path in self._outputs)

    def target(self, name: str) -> TargetCopy:
        """The files of a target's arrays that are the same in both stores."""
        chunks, found = self._copy.view_chunks(name), {}
        for path in self._outputs:
            parts = path.split("/")
            if parts[0] in chunks and (place := chunks[parts[0]].get(int(parts[_VIEWS]))) is not None:
                found["/".join((*parts[:_VIEWS], str(place), *parts[_VIEWS + 1 :]))] = path
        return TargetCopy(self._copy, self, name, found)

    def read(self, path: str) -> bytes:
        """A file of the old store.

        Raises:
            DamagedError: it is not the one that the store's receipt vouches for.
        """
        receipts, output = self._copy.source.receipts, self._outputs[path]
        try:
            data = (receipts.store / output.path).read_bytes()
        except FileNotFoundError as error:
            raise receipts.damaged(path, self.number, "no such chunk") from error
        if (sha256 := hashlib.sha256(data).hexdigest()) != output.sha256:
            raise receipts.damaged(path, self.number, f"sha256 {sha256}")
        return data

    def write(self, path: str, old: str, data: bytes) -> Output:
        """Write the content of a file of the old store into the new one, durably; what a receipt says of it."""
        (self._copy.out / path).write_bytes(data)
        return Output(path=path, bytes=len(data), sha256=self._outputs[old].sha256)


class TargetCopy:
    """Files of a target that are the same in both stores, written as its rows are read in portions.

    Args:
        files: of the new store, each with the one of the old store that it equals.

    Attributes:
        arrays: whose files these are.
        outputs: what a receipt says of those that are written.
    """

    def __init__(self, copy: ChunkCopy, shard: ShardCopy, name: str, files: Mapping[str, str]) -> None:
        self._copy, self._shard, self._name, self._files = copy, shard, name, dict(files)
        self._kept: dict[str, bytes] = {}
        self.arrays = {path.partition("/")[0] for path in files}
        self.outputs: list[Output] = []

    def stored(self, part: slice) -> dict[str, NDArray[Any]]:
        """Write the files of some rows, portions of whole chunks; all arrays of the target as they are stored, (row, view, …) by name.

        Raises:
            DamagedError: a file is not the one that the store's receipt vouches for.
        """
        source = self._copy.source.source
        spec, target = source.spec, source.spec.target(self._name)
        own = {array.name for array in spec.encoding_of(target).arrays(target) if not array.beside}
        start, size = spec.rows(self._shard.number).start, spec.chunk_rows(target)
        chunks = range((start + part.start) // size, -(-(start + part.stop) // size))
        here = dict(self._kept)
        for path, old in list(self._files.items()):
            array, _, number, _ = path.split("/", 3)
            is_streamed = spec.is_streamed(target) and array in own
            if is_streamed and int(number) not in chunks:
                continue
            here[old] = self._shard.read(old)
            self.outputs.append(self._shard.write(path, old, here[old]))
            del self._files[path]
            if not is_streamed:
                self._kept[old] = here[old]
        with self._copy.holding(here):
            return read_stored_views(self._copy.decoded, spec, self._shard.number, self._name, source.views, part)


def _described(root: Any) -> dict[str, Any]:
    """All of what Zarr says of the arrays of rows, but for their attributes."""
    arrays = {name: array.metadata.to_dict() for name, array in root.arrays() if not name.startswith(NOT_OF_ROWS)}
    return {name: {key: value for key, value in said.items() if key != "attributes"} for name, said in arrays.items()}


def _but_for_views(array: dict[str, Any]) -> dict[str, Any]:
    rows, _, *others = array["shape"]
    return {**array, "shape": (rows, *others)}


def same_chunks(views: Sequence[int], num_views: int, together: int) -> dict[int, int] | None:
    """Chunks of an array with `num_views` views, and the chunk of some of its views that each is; None where one is of other views.

    Args:
        views: that are taken, in their new order.
        together: views of a chunk.
    """
    found = {}
    for place, start in enumerate(range(0, len(views), together)):
        chunk = views[start] // together
        here = range(chunk * together, min((chunk + 1) * together, num_views))
        if tuple(views[start : start + together]) != tuple(here):
            return None
        found[chunk] = place
    return found
