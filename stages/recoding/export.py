"""Owns the seam of exports: what a layout of another program gets of a shard, and what it has to write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.manifest import Entry
from ...storage_schemas.view_params import Views
from .source import SourceShard

#: Types of numbers that `--dtype` names.
DTYPES: Mapping[str, Any] = {"fp32": np.float32, "fp16": np.float16}

#: Bytes of fp32 that a portion of rows takes at most; one row may take more.
_PORTION_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Some samples of a shard, in row order: N of them, K views each.

    Attributes:
        rows: of the corpus.
        keys: of the samples.
        entries: of the manifest; None for each where the shards are not at hand.
        views: their numbers in the store, K.
        params: VIEW (sample, view).
        targets: by name, fp32 (sample, view, …).
    """

    rows: Sequence[int]
    keys: Sequence[str]
    entries: Sequence[Entry | None]
    views: tuple[int, ...]
    params: Views
    targets: Mapping[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, kw_only=True)
class ExportShard:
    """The samples of one shard that are exported.

    Attributes:
        shard: of the source.
        first_row: of the shard.
        entries: of all its rows; None where the shards are not at hand.
        views: numbers in the store of the views that are taken.
    """

    shard: SourceShard
    first_row: int
    entries: Sequence[Entry] | None
    views: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.shard.taken)

    @property
    def number(self) -> int:
        return self.shard.number

    def portions(self) -> Iterator[Portion]:
        """The samples, so many at a time that they take little memory."""
        for part in self.shard.parts():
            taken = self.shard.taken
            places = taken[(taken >= part.start) & (taken < part.stop)]
            if not len(places):
                continue
            targets = self.shard.targets(part)
            row_bytes = sum(values[0].nbytes for values in targets.values())
            step = max(1, _PORTION_BYTES // max(1, row_bytes))
            for start in range(0, len(places), step):
                yield self._portion(places[start : start + step], targets, part.start)

    def _portion(self, places: NDArray[np.int64], targets: Mapping[str, NDArray[np.float32]], start: int) -> Portion:
        chosen = places.tolist()
        return Portion(
            rows=[self.first_row + place for place in chosen],
            keys=[self.shard.keys[place] for place in chosen],
            entries=[None if self.entries is None else self.entries[place] for place in chosen],
            views=self.views,
            params=self.shard.params[places],
            targets={name: values[places - start] for name, values in targets.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What layouts, and whoever finds the files, are told of them as a whole.

    Attributes:
        targets: axes (without sample and view) and shape of one row's view of each, by name.
        view_numbers: numbers in the store of the views that are taken.
        views: how they are drawn (`ViewSpec.to_json`).
        teacher: as the store describes it (`TeacherSpec.to_json`).
        colors: whether views have colours of their own.
        classes: names in the order of the logits, and what forms these of embeddings; None where there are none.
        recoded: the store that they are of, and what was taken of it.
        corpus_id: of the samples.
    """

    targets: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]]
    view_numbers: tuple[int, ...]
    views: Mapping[str, Json]
    teacher: Mapping[str, Json]
    colors: bool
    classes: Mapping[str, Json] | None
    recoded: Mapping[str, Json]
    corpus_id: str

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one row's view of each target, by name."""
        return {name: shape for name, (_, shape) in self.targets.items()}

    @property
    def num_views(self) -> int:
        return len(self.view_numbers)

    def to_json(self) -> dict[str, Json]:
        facts = {
            "kind": "teachonce export",
            "targets": {
                name: {"axes": list(axes), "shape": list(shape)} for name, (axes, shape) in self.targets.items()
            },
            "view_numbers": list(self.view_numbers),
            "views": dict(self.views),
            "teacher": dict(self.teacher),
            "recoded": dict(self.recoded),
            "corpus_id": self.corpus_id,
        }
        return facts if self.classes is None else {**facts, "classes": dict(self.classes)}


class Layout(Protocol):
    """How samples become files of another program. Picklable; it writes the same bytes for the same samples."""

    def to_json(self) -> Json:
        """Its name, and what else decides the bytes."""

    def check(self, exported: Exported, where: object) -> None:
        """Refuse a store that the layout has no room for.

        Raises:
            InputError: names what it has no room for.
        """

    def beside(self, exported: Exported) -> dict[str, bytes]:
        """Files that describe all others, by name in the folder."""

    def write(self, shard: ExportShard, folder: Location) -> list[str]:
        """Write one shard's samples, of which there are some. Returns the names of the files in the folder."""


def as_dtype(values: NDArray[np.float32], dtype: str, name: str) -> NDArray[Any]:
    """The numbers in the type that `--dtype` names.

    Raises:
        InputError: fp16 has no room for one.
    """
    with np.errstate(over="ignore"):
        found = values.astype(DTYPES[dtype], copy=False)
    if dtype == "fp16" and np.isinf(found).any():
        raise InputError(
            "numbers that fp16 has no room for",
            code="fp16-overflow",
            where=name,
            expected=f"at most {np.finfo(np.float16).max:g}",
            found=f"{np.abs(values).max():g}",
            hint="leave out --dtype",
        )
    return found
