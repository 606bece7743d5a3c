"""Owns a look into a target store: the targets of any shard and view, and which image a row is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import zarr
from numpy.typing import NDArray

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import IncompleteError, MismatchError, TeachonceError
from ...storage_schemas.manifest import Entry, ManifestReader
from ...storage_schemas.plain_text import typed
from ...storage_schemas.store_description import ATTRIBUTE, StoreDescription, StoreSpec
from ...storage_schemas.target_store import read_marks, read_rows, read_target
from ...storage_schemas.view_params import Views
from ..corpora.shards import ShardSet
from ..pairs.receipts import StoreReceipts
from ..pairs.store import open_store, read_description, store_receipts, vectors_if_any


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """An open target store, with the shards it was made from where they can be found.

    Attributes:
        recorded: what `cache` recorded; None where only class vectors are stored so far.
        vectors: None where there are none yet.
        shards: None where they are not at hand; then rows have keys, but no paths.
        no_paths: why `shards` is None.
    """

    location: Location
    root: zarr.Group
    recorded: StoreDescription | None
    vectors: ClassVectors | None
    shards: ShardSet | None
    no_paths: str

    @staticmethod
    def open(store: Location | str, shards: Location | str | None = None, generation: str | None = None) -> Stored:
        """Open a store for reading, finished or not.

        Args:
            store: the target store.
            shards: folder of its shards; None takes the one that the store recorded, if it is still right.
            generation: the name of one; None for the current one.

        Raises:
            InputError: no store or no such generation there, or no shards in the given folder.
            MismatchError: not a target store of this version; the given shards are another corpus's.
            DamagedError: the class vectors changed since they were written.
        """
        location = Location.of(store)
        root = open_store(location, generation)
        begun = ATTRIBUTE in root.attrs or Ledger(location, "cache").plan() is not None
        description = read_description(root, location) if begun else None
        vectors = vectors_if_any(root, location)
        found, no_paths = _find_shards(location, description, shards)
        return Stored(
            location=location,
            root=root,
            recorded=description,
            vectors=vectors,
            shards=found,
            no_paths=no_paths,
        )

    @functools.cached_property
    def receipts(self) -> StoreReceipts:
        """The receipts of its rows."""
        if self.recorded is None:
            return StoreReceipts(self.location)
        return store_receipts(self.location, self.recorded.generation)

    @property
    def spec(self) -> StoreSpec | None:
        """The spec of the rows; None where there are none yet."""
        return None if self.recorded is None else self.recorded.spec

    @property
    def description(self) -> StoreDescription:
        """What `cache` recorded.

        Raises:
            IncompleteError: there are no rows yet.
        """
        return self.recorded or StoreDescription.read(self.root, where=self.location)

    @property
    def rows(self) -> StoreSpec:
        """The spec of the rows.

        Raises:
            IncompleteError: there are none yet.
        """
        return self.description.spec

    def shards_done(self) -> list[int]:
        """Shards whose rows are all there, in order."""
        return self.receipts.shards_done(self.rows.num_shards)

    def require_done(self, row: int) -> int:
        """The shard of a row.

        Raises:
            IncompleteError: its shard is not cached yet.
        """
        shard = row // self.rows.shard_size
        if self.receipts.receipt(shard) is None:
            raise IncompleteError(
                "this sample is not cached yet",
                code="sample-not-cached",
                where=f"{self.location}, row {row}, shard {shard}",
                hint=self.receipts.ledgers[-1].again,
            )
        return shard

    def keys_and_valid(self, shard: int) -> tuple[NDArray[np.bytes_], NDArray[np.bool_]]:
        """Keys (sample,) as `S32`, and valid (sample,), of one shard."""
        return read_marks(self.root, self.rows, shard)

    @property
    def no_logits(self) -> str:
        """Why there are no logits to show, or '' where there are."""
        if self.spec is None:
            return "no targets are cached yet"
        names = {target.name for target in self.spec.targets}
        if "logits" in names:
            return ""
        if "embedding" not in names:
            return f"logits cannot be derived from {', '.join(sorted(names))}"
        if self.vectors is None:
            command = f"teachonce vectors --teacher … --out {typed(self.location)}"
            return f"the store has embeddings but no class vectors yet. Next: {command}"
        width = next(target.shape[0] for target in self.spec.targets if target.name == "embedding")
        if width != self.vectors.embed_dim:
            return f"class vectors have {self.vectors.embed_dim} channels, embeddings {width}"
        return ""

    def logits(self, shard: int, view: int) -> NDArray[np.float32]:
        """The teacher's logits of one shard and view: fp32 (sample, class); NaN where not valid.

        Derived from embeddings and class vectors where logits are not stored. Needs `no_logits == ''`.
        """
        if any(target.name == "logits" for target in self.rows.targets):
            return read_target(self.root, self.rows, shard, "logits", view)
        assert self.vectors is not None
        return self.vectors.logits(read_target(self.root, self.rows, shard, "embedding", view))

    @property
    def num_classes(self) -> int:
        """Classes of the logits. Needs `no_logits == ''`."""
        for target in self.rows.targets:
            if target.name == "logits":
                return target.width
        assert self.vectors is not None
        return self.vectors.num_classes

    def class_name(self, index: int) -> str:
        """The name of a class, or `class N` where the store has no names for its logits."""
        names = self.vectors.names if self.vectors is not None else ()
        return names[index] if index < len(names) else f"class {index}"

    def labels(self, shard: int) -> list[str | None] | None:
        """The labels of one shard's rows, where the shards are at hand."""
        return None if self.shards is None else self._manifest.labels_of(shard)

    def digests(self, shard: int) -> list[tuple[int, str]]:
        """(row, digest of the content) of one shard's rows; none where the shards are not at hand."""
        digests = [] if self.shards is None else self._manifest.digests(shard)
        return list(enumerate(digests, self.rows.rows(shard).start))

    def view_params(self, row: int) -> Views:
        """VIEW (view,) of one row, as stored."""
        shard, offset = divmod(row, self.rows.shard_size)
        found: Views = self._params(shard)[:, offset]
        return found

    @functools.cached_property
    def _params(self) -> Callable[[int], Views]:
        def read(shard: int) -> Views:
            views = range(self.rows.num_views)
            return np.stack([read_rows(self.root, self.rows, shard, view)[2] for view in views])

        return functools.lru_cache(maxsize=4)(read)

    def entry(self, row: int) -> Entry | None:
        """The manifest's entry of a row, where the shards are at hand."""
        if self.shards is None:
            return None
        shard, offset = divmod(row, self.rows.shard_size)
        return self.entries(shard)[offset]

    def entries(self, shard: int) -> list[Entry]:
        """The manifest's entries of a shard's rows. Needs `shards`."""
        return self._entries(shard)

    @functools.cached_property
    def _manifest(self) -> ManifestReader:
        assert self.shards is not None
        return self.shards.manifest()

    @functools.cached_property
    def _entries(self) -> Callable[[int], list[Entry]]:
        return functools.lru_cache(maxsize=4)(self._manifest.shard)


def _find_shards(
    store: Location, description: StoreDescription | None, given: Location | str | None
) -> tuple[ShardSet | None, str]:
    """(shards, '') or (None, why not). A folder that the user names must be right; the recorded one may be stale."""
    if description is None:
        return None, "no targets are cached yet"
    if given is not None:
        return _as_cached(store, description, ShardSet.open(given)), ""
    recorded: Location | str = description.shards
    try:
        recorded = Location.of(recorded)
        shards = _as_cached(store, description, ShardSet.open(recorded))
    except TeachonceError as error:
        return (
            None,
            f"{recorded}, where the shards were, cannot be used ({error.what}); pass --shards DIR to see paths",
        )
    return shards, ""


def _as_cached(store: Location, description: StoreDescription, shards: ShardSet) -> ShardSet:
    """The shards as they were when the store was made."""
    then = shards.as_of(description.corpus_id)
    if then is None:
        raise MismatchError(
            "these shards are another corpus's",
            code="shards-other-corpus",
            where=f"{shards.location}: field 'corpus_id'",
            expected=f"{description.corpus_id} (as in {store})",
            found=f"{shards.corpus.corpus_id} (these shards)",
            hint="pass the shards that the store was made from",
        )
    return then
