"""Owns the view of a target store as an xarray data set: decoded, fp32, and read when values are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...storage_schemas.errors import MissingDependency
from ...storage_schemas.samples import KEY_LENGTH
from ...storage_schemas.store_description import TargetSpec
from ...storage_schemas.view_params import BOX

if TYPE_CHECKING:
    import xarray

#: Reads (row, view, …) for rows and views by number.
_Read = Callable[[Any, list[int]], Any]


class Readable(Protocol):
    """What a data set reads: `store.TargetStore`, which says what each member is."""

    @property
    def location(self) -> Any: ...
    @property
    def num_views(self) -> int: ...
    @property
    def targets(self) -> Mapping[str, TargetSpec]: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def teacher(self) -> Mapping[str, Any]: ...
    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...
    def keys(self, rows: Any) -> Any: ...
    def valid(self, rows: Any) -> Any: ...
    def views(self, rows: Any, *, view: Sequence[int]) -> Any: ...
    def target(self, name: str, rows: Any, *, view: Sequence[int]) -> Any: ...
    def logits(self, rows: Any, *, view: Sequence[int]) -> Any: ...


def as_dataset(store: Readable) -> xarray.Dataset:
    """A data set over `sample`, `view`, and the axes of the targets. See `TargetStore.xarray`.

    Variables: every target by its name, `logits` also where they are formed from embeddings; `valid` (sample,); `view_params` (sample,
    view, parameter). Coordinates: `key` (sample,), `class`, `parameter`. Attributes: teacher, fingerprint, location.

    Raises:
        MissingDependency: xarray is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise MissingDependency("a store as a data set needs xarray", "pip install 'teachonce[xarray]'") from error
    samples, views = len(store), store.num_views

    def by_view(axes: tuple[str, ...], shape: tuple[int, ...], dtype: Any, read: _Read) -> Any:
        return _lazy(("sample", "view", *axes), (samples, views, *shape), dtype, read)

    def boxes(rows: Any, numbers: list[int]) -> Any:
        records = store.views(rows, view=numbers)
        return np.stack([records[name] for name in BOX], axis=-1)

    sizes: dict[str, int] = {}
    variables = {
        name: by_view(_dimensions(target, sizes), target.shape, np.float32, _of_target(store, name))
        for name, target in store.targets.items()
    }
    if "logits" not in variables and store.class_names:
        read: _Read = lambda rows, numbers: store.logits(rows, view=numbers)  # noqa: E731
        variables["logits"] = by_view(("class",), (len(store.class_names),), np.float32, read)
    variables["view_params"] = by_view(("parameter",), (len(BOX),), np.int32, boxes)
    variables["valid"] = _lazy(("sample",), (samples,), np.bool_, lambda rows, _: store.valid(rows))
    keys = _lazy(("sample",), (samples,), f"U{KEY_LENGTH}", lambda rows, _: store.keys(rows))
    coordinates: dict[str, Any] = {"key": keys, "parameter": list(BOX)}
    if store.class_names and any("class" in variable.dims for variable in variables.values()):
        coordinates["class"] = list(store.class_names)
    about = {
        "location": str(store.location),
        "fingerprint": store.fingerprint,
        "teacher": str(store.teacher.get("model", "")),
    }
    return xarray.Dataset(variables, coordinates, about)


def _dimensions(target: TargetSpec, sizes: dict[str, int]) -> tuple[str, ...]:
    """A target's own dimensions, with its name where an earlier target's has another size: in a data set each has one."""
    return tuple(
        axis if sizes.setdefault(axis, size) == size else f"{axis}_{target.name}"
        for axis, size in zip(target.axes[2:], target.shape, strict=True)
    )


def _of_target(store: Readable, name: str) -> _Read:
    return lambda rows, numbers: store.target(name, rows, view=numbers)


def _lazy(dims: tuple[str, ...], shape: tuple[int, ...], dtype: Any, read: _Read) -> Any:
    """A variable whose first axis are rows, and whose second, if there is one, are views."""
    import xarray
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class Values(BackendArray):
        def __init__(self) -> None:
            self.shape, self.dtype = shape, np.dtype(dtype)

        def __getitem__(self, key: Any) -> Any:
            return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

        def _read(self, key: tuple[Any, ...]) -> Any:
            """Each part of `key` is a number, a slice, or an array of numbers; these are of the axes independently."""
            rows, *others = key
            views = [int(view) for view in np.atleast_1d(np.arange(shape[1])[others[0]])] if others else []
            values = read(range(shape[0])[rows] if isinstance(rows, slice) else np.atleast_1d(rows), views)
            for axis, part in reversed(list(enumerate(key))):
                done = slice(None) if np.ndim(part) or isinstance(part, slice) else 0
                values = values[(*(slice(None),) * axis, done if axis < 2 else part)]
            return values

    return xarray.Variable(dims, indexing.LazilyIndexedArray(Values()))
