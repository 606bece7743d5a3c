"""Owns making room in a store for a generation: it is recorded first, then arrays are made larger, or made."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import zarr

from ...pipeline.storage import Location
from ...pipeline.types import Stage
from ...storage_schemas.errors import MismatchError
from ...storage_schemas.fingerprint import Fingerprint
from ...storage_schemas.generations import Generations
from ...storage_schemas.growth import GENERATIONS, Growth
from ...storage_schemas.kept_views import BY_SHARD
from ...storage_schemas.store_description import StoreDescription, StoreSpec
from ...storage_schemas.target_store import (
    Arrays,
    all_arrays,
    array_names,
    create_named_arrays,
    open_root,
    write_table,
)
from ..pairs.receipts import generation_ledger


@dataclass(frozen=True, kw_only=True)
class Step:
    """One generation to be made, or to be looked after: its units that are done are passed over.

    Attributes:
        stage: readers get the generation once its units are done.
        notes: lines for people.
    """

    stage: Stage
    store: Location
    notes: tuple[str, ...]


def show_generation(store: Location, name: str) -> None:
    """From now on readers get this generation, unless they get a later one."""
    root = open_root(store.zarr_store(), mode="a", where=store)
    generations = Generations.read(root, store)
    if generations is not None and name not in generations.finished:
        generations.finish(root, name)


class PlacedArrays:
    """The arrays of a store for writing, by the names that they have in one generation."""

    def __init__(self, root: zarr.Group, places: Mapping[str, str], within: str = "") -> None:
        self._root, self._places, self._within = root, dict(places), within

    def __getitem__(self, path: str) -> Any:
        place = self._places.get(path, path)
        return self._root[f"{self._within}/{place}" if self._within else place]


def arrays_of(root: zarr.Group, growth: Growth | None) -> Arrays:
    """The arrays that a generation's blocks are written into."""
    return PlacedArrays(root, {}) if growth is None else PlacedArrays(root, growth.arrays, growth.overlay)


def make_room(
    root: zarr.Group,
    store: Location,
    generations: Generations,
    description: StoreDescription,
    targets: tuple[str, ...] = (),
) -> None:
    """Record a generation that is to be made, and make room for it. Done again, it changes nothing.

    Args:
        root: the store's group, for writing.
        generations: of the store.
        description: of the generation.
        targets: those that need arrays of their own, at the generation's places.

    Raises:
        MismatchError: another growth was begun, and has shards that are done.
    """
    growth = description.growth
    assert growth is not None
    ledger, begun = generation_ledger(store, growth.name), generations.begun
    if begun is None or begun.fingerprint != description.fingerprint:
        if begun is not None:
            generations = _give_up(root, store, generations, begun, description)
        for (
            name
        ) in targets:  # before the description that names their digests, without which nobody could read the store
            write_table(root, description.spec.target(name))
        generations.begin(root, description)
    elif ledger.plan() is not None:
        return
    spec = description.spec
    sizes = {"sample": spec.num_rows, "view": spec.num_views, BY_SHARD: spec.num_shards}
    for array in _all(root, store):
        names = array.metadata.dimension_names or ()
        shape = tuple(
            max(size, sizes.get(name, size)) for size, name in zip(array.shape, names or array.shape, strict=True)
        )
        if shape != array.shape:
            array.resize(shape)
    own = any(path.startswith(f"{growth.folder}/") for path in growth.made)
    within = root.require_group(growth.folder) if own else root
    made = [name for name in array_names(description.spec) if growth.arrays.get(name, name) in growth.made]
    create_named_arrays(within, description.spec, made)
    if growth.overlay:
        for name in array_names(description.spec):
            folder = f"{growth.overlay}/{growth.arrays.get(name, name)}".rpartition("/")[0]
            create_named_arrays(root.require_group(folder), description.spec, [name])


def _give_up(
    root: zarr.Group, store: Location, generations: Generations, begun: StoreDescription, wanted: StoreDescription
) -> Generations:
    """Forget a growth of which nothing is done yet."""
    assert begun.growth is not None
    ledger = generation_ledger(store, begun.growth.name)
    if ledger.done_keys():
        folder = shlex.quote(str(ledger.folder))
        Fingerprint(fields=wanted.fingerprint).check(
            begun.fingerprint,
            what="another growth of this store was begun, and is not finished",
            code="growth-other-begun",
            where=f"{store}, generation {begun.generation}",
            hint=f"{ledger.again} until it is finished; or, to give it up, mv {folder} {folder}.old",
            whose=("this command", "the growth that was begun"),
        )
        raise AssertionError("they differ")
    (ledger.folder / "plan.json").remove()
    left = generations.forget(root)
    for path in begun.growth.made:
        if path in root:
            del root[path]
    return left


def _all(root: zarr.Group, store: Location) -> Iterator[Any]:
    """The arrays of all generations; not those of mended blocks."""
    yield from (array for _, array in all_arrays(root, store))
    if GENERATIONS in root:
        for _, group in root[GENERATIONS].groups():  # type: ignore[union-attr]
            yield from (array for _, array in all_arrays(group, store))


def refuse_no_growth(
    wanted: Fingerprint, found: Mapping[str, Any], *, but: tuple[str, ...], store: Location, hint: str
) -> None:
    """Refuse what is no growth of a store: anything but some fields differs.

    Args:
        wanted: fingerprint of what is asked for.
        found: that of the store's current generation.
        but: dotted names of the fields that may differ.

    Raises:
        MismatchError: names the field.
    """
    Fingerprint(fields=_without(wanted.fields, but)).check(
        _without(found, but),
        what="the store cannot grow to this",
        code="growth-other-settings",
        where=store,
        hint=hint,
        whose=("this command", "the store"),
    )


def _without(fields: Mapping[str, Any], names: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    return {
        name: _without(value, names, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        for name, value in fields.items()
        if f"{prefix}{name}" not in names
    }


def refuse_off_chunks(root: zarr.Group, spec: StoreSpec, store: Location) -> None:
    """Refuse more views where the last chunk has room for some: it would have to be written anew.

    Args:
        root: the store as of its current generation.

    Raises:
        MismatchError: says how many views fill the chunks.
    """
    for name in array_names(spec):
        array: Any = root[name]
        chunk = array.chunks[1] if array.metadata.dimension_names[1:2] == ("view",) else 1
        if spec.num_views % chunk:
            raise MismatchError(
                "more views would begin within a chunk of those that are there",
                code="growth-within-chunk",
                where=f"{store}/{name}",
                expected=f"a multiple of {chunk} views, which fill their chunks",
                found=spec.num_views,
                hint="cache into another store, with --chunk-views of a number that divides all its numbers of views",
            )
