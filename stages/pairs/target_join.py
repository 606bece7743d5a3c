"""Owns joining targets onto a user's own `webdataset.WebDataset` pipeline over tars that `teachonce shard` wrote."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError, InputError
from ...storage_schemas.target_store import read_rows
from ..corpora.images import MAX_PIXELS, BadImage
from ..samples.kind import draw_views
from ..samples.registry import kind_named
from .join import check_views, targets_to_read
from .store import open_store, read_vectors, store_facts
from .target_rows import TargetRows

#: Shards whose targets are kept at hand: as many as a pipeline mixes after the join costs nothing.
OPEN_SHARDS = 4

WebDatasetSample = Mapping[str, Any]


@dataclass(frozen=True)
class _Block:
    """One view of one shard's rows."""

    keys_N: NDArray[np.bytes_]
    valid_N: NDArray[np.bool_]
    views_N: NDArray[Any]
    targets: Mapping[str, TargetRows | NDArray[np.float32]]


def join_targets(
    store: Location | Path | str,
    *,
    view: int = 0,
    image_size: int | None = None,
    targets: Sequence[str] = ("logits",),
    generation: str | None = None,
) -> TargetJoin:
    """The teacher's targets, added to the samples of a WebDataset pipeline: for `WebDataset(...).compose(...)`.

    It goes in front of whatever renames or drops members, since it needs `__key__`, the member `json` and, for
    `image_size`, the image's own bytes (`.decode` may come before it without `image_size`, or behind with `partial=True`). Each sample gets, as numpy arrays:

    - every target by name, fp32, in its shape; `logits` are formed from embeddings where the store holds no logits;
    - `view`: the view's parameters as they are stored (`view["top"]`, …);
    - with `image_size`, `image`: uint8 (3, image_size, image_size), that very view. Only a stored view is a valid target, so a
      pipeline that crops for itself must crop to `view`.

    Samples that the teacher could not use are left out, as they are in `TargetStream`.

    Args:
        store: finished target store.
        view: which of its K views; give epoch *e* the view *e mod K*.
        image_size: pixels of the rendered view; None leaves the image to the pipeline.
        targets: names.
        generation: the name of an older generation of a store that grew; None for the current one.

    Raises:
        InputError, IncompleteError, MismatchError, DamagedError: no finished store, or without these targets
            or views. While samples flow: a sample without what it takes, or of another corpus.
    """
    return TargetJoin(Location.of(store), view, image_size, tuple(targets), generation)


class TargetJoin:
    """See `join_targets`. Picklable: processes of a loader open the store for themselves."""

    def __init__(
        self, store: Location, view: int, image_size: int | None, targets: tuple[str, ...], generation: str | None
    ) -> None:
        self._facts = facts = store_facts(store, generation)
        check_views(facts, view + 1)
        self._view, self._image_size, self._targets = view, image_size, targets
        self._kind = kind_named(facts.sample_kind, where=store)
        self._names, forms_logits = targets_to_read(facts, targets)
        self._vectors = read_vectors(self._open(), store) if forms_logits else None

    def _open(self) -> Any:
        return open_store(self._facts.store, self._facts.generation)

    def __call__(self, samples: Iterable[WebDatasetSample]) -> Iterator[dict[str, Any]]:
        """The samples with their targets, in their order."""
        root, spec = self._open(), self._facts.spec
        blocks: OrderedDict[int, _Block] = OrderedDict()
        for sample in samples:
            key, row = _identify(sample)
            shard, position = divmod(row, spec.shard_size)
            if shard not in blocks:
                if len(blocks) == OPEN_SHARDS:
                    blocks.popitem(last=False)
                blocks[shard] = self._read(root, shard, key)
            blocks.move_to_end(shard)
            block = blocks[shard]
            known = block.keys_N[position].decode("ascii") if position < len(block.keys_N) else "no such row"
            if known != key:
                raise DamagedError(
                    "the sample is not the one that the store has in its row",
                    code="keys-differ",
                    where=f"{self._facts.store}, row {row}",
                    expected=known,
                    found=key,
                    hint="pass the store that was made from these tars",
                )
            if block.valid_N[position]:
                yield self._joined(sample, block, position)

    def _read(self, root: Any, shard: int, key: str) -> _Block:
        if not 0 <= shard < self._facts.spec.num_shards:
            raise DamagedError(
                "a sample of a shard that the store does not have",
                code="sample-outside-store",
                where=f"{self._facts.store}, key {key}",
                expected=f"shards 0 to {self._facts.spec.num_shards - 1}",
                found=shard,
                hint="pass the store that was made from these tars",
            )
        keys_N, valid_N, views_N = read_rows(root, self._facts.spec, shard, self._view)
        targets: dict[str, TargetRows | NDArray[np.float32]] = {
            n: TargetRows(root, self._facts.spec, shard, n, self._view) for n in self._names
        }
        if self._vectors is not None:
            targets["logits"] = self._vectors.logits(targets["embedding"][np.arange(len(keys_N))])
        return _Block(keys_N, valid_N, views_N, targets)

    def _joined(self, sample: WebDatasetSample, block: _Block, position: int) -> dict[str, Any]:
        view = block.views_N[position]
        found = {name: block.targets[name][position] for name in self._targets}
        found["view"] = view
        if self._image_size is not None:
            try:
                decoded = self._kind.decode(_image_bytes(sample), MAX_PIXELS)
            except BadImage as bad:
                raise DamagedError(
                    "an image that the teacher saw cannot be read any more",
                    code="image-no-longer-readable",
                    where=sample["__key__"],
                    found=bad,
                ) from bad
            params = block.views_N[position : position + 1]
            found["image"] = draw_views(self._kind, decoded, params, self._image_size, self._facts.views)[0]
        return {**sample, **found}


def _identify(sample: WebDatasetSample) -> tuple[str, int]:
    """Key and row of a sample."""
    try:
        about = sample["json"]
        about = json.loads(about) if isinstance(about, bytes | str) else about
        return str(sample["__key__"]), int(about["row"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            "a sample without the members '__key__' and 'json' with its row",
            code="sample-members-missing",
            where=sample.get("__key__", "?"),
            found=", ".join(name for name in sample if not name.startswith("__")) or "nothing",
            hint="join the tars that `teachonce shard` wrote, before anything renames or drops their members",
        ) from error


def _image_bytes(sample: WebDatasetSample) -> bytes:
    members = [name for name in sample if not name.startswith("__") and name != "json"]
    if len(members) != 1 or not isinstance(sample[members[0]], bytes):
        raise InputError(
            "rendering needs the image's own bytes",
            code="sample-image-missing",
            where=sample["__key__"],
            expected="one member beside 'json'",
            found=", ".join(members) or "none",
            hint="join before `.decode(…)`, or leave out image_size",
        )
    return sample[members[0]]  # type: ignore[no-any-return]
