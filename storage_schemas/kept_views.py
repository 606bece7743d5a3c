"""Owns how a store keeps the parameters of views: each one, or what they are derived from, with a digest of them.

Whoever writes or reads parameters does so here, and knows nothing of the difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .encodings.encoding import Codec
from .errors import MismatchError
from .store_description import StoreSpec
from .view_params import COLOR_FACTORS, VIEW, Views, columns, from_columns, no_views, to_columns

#: Axis of arrays that have one entry a shard.
BY_SHARD = "shard"

#: The arrays of a store that derives parameters.
SIZES, DIGESTS = "image_size", "view_digest"

#: Of an image: its height and width.
SIZE_COLUMNS = ("height", "width")

#: The size of a sample that has no views.
NO_SIZE = -1

_DIGEST_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class ViewArray:
    """One array that parameters are kept in.

    Attributes:
        axes: the first is sample or `BY_SHARD`, the last has the columns.
        columns: what these are, or how many.
        of_rows: whether it is written with the rows, and not with some of their views.
    """

    name: str
    axes: tuple[str, ...]
    columns: tuple[str, ...] | int
    dtype: str
    fill: Any
    codec: Codec = "small"
    of_rows: bool = False

    @property
    def width(self) -> int:
        return self.columns if isinstance(self.columns, int) else len(self.columns)


def view_arrays(spec: StoreSpec) -> tuple[ViewArray, ...]:
    """The arrays of a store that parameters are kept in."""
    by_view = ("sample", "view")
    if spec.drawing is not None:
        sizes = ViewArray(
            name=SIZES,
            axes=("sample", "side"),
            columns=SIZE_COLUMNS,
            dtype="int32",
            fill=NO_SIZE,
            codec="dense-shuffled",
            of_rows=True,
        )
        digests = ViewArray(
            name=DIGESTS, axes=(BY_SHARD, "view", "byte"), columns=_DIGEST_BYTES, dtype="uint8", fill=0, codec="plain"
        )
        return sizes, digests
    params = ViewArray(
        name="view_params", axes=(*by_view, "view_param"), columns=columns(spec.colors), dtype="int32", fill=-1
    )
    if not spec.colors:
        return (params,)
    colors = ViewArray(
        name="view_colors", axes=(*by_view, "view_color"), columns=COLOR_FACTORS, dtype="float32", fill=float("nan")
    )
    return params, colors


def no_sizes(num_samples: int) -> NDArray[np.int32]:
    """Heights and widths (sample, 2), to be filled in."""
    return np.full((num_samples, len(SIZE_COLUMNS)), NO_SIZE, np.int32)


def to_arrays(
    spec: StoreSpec,
    keys: Sequence[str],
    valid_N: NDArray[np.bool_],
    params_NV: Views,
    sizes_N2: NDArray[np.int32],
    first_view: int,
    where: str,
) -> dict[str, NDArray[Any]]:
    """What a store keeps of the parameters of a shard's views, by the names of arrays.

    Args:
        params_NV: VIEW (sample, view), of the views from `first_view` on.
        sizes_N2: of the images, where they are valid; not looked at where parameters are stored.
        where: names the shard.

    Raises:
        MismatchError: the parameters are others than would be derived.
    """
    if spec.drawing is None:
        return to_columns(params_NV, spec.colors)
    views = range(first_view, first_view + params_NV.shape[1])
    derived_NV = _derive(spec, keys, valid_N, sizes_N2, views)
    differs_NV = _as_bytes(derived_NV) != _as_bytes(params_NV)
    if differs_NV.any():
        row, view = np.argwhere(differs_NV)[0].tolist()
        raise MismatchError(
            "these views are not what would be derived of them",
            code="views-not-derived",
            where=f"{where}, key {keys[row]}, view {first_view + view}",
            expected=_text(derived_NV[row, view]),
            found=_text(params_NV[row, view]),
            hint="keep them with --view-params stored",
        )
    return {SIZES: sizes_N2, DIGESTS: _digests(params_NV)[None]}


def from_arrays(
    spec: StoreSpec,
    keys_N: NDArray[np.bytes_],
    valid_N: NDArray[np.bool_],
    arrays: Mapping[str, NDArray[Any]],
    views: Sequence[int],
    where: str,
) -> Views:
    """VIEW (sample, view) of some views of a shard.

    Args:
        arrays: by name, what `view_arrays` are in the rows of the shard and in these views.

    Raises:
        MismatchError: what is derived is not what the store was made with.
    """
    if spec.drawing is None:
        return from_columns(arrays["view_params"], arrays.get("view_colors"))
    keys = [key.decode("ascii", "replace") for key in keys_N.tolist()]
    params_NV = _derive(spec, keys, valid_N, arrays[SIZES], views)
    for view, expected, found in zip(views, arrays[DIGESTS][0], _digests(params_NV), strict=True):
        if (expected != found).any():
            raise MismatchError(
                "the views that are derived are not those that the store was made with",
                code="views-derived-differ",
                where=f"{where}, view {view}",
                expected=f"{expected.tobytes().hex()} ({DIGESTS})",
                found=f"{found.tobytes().hex()} (of {SIZES} and the keys)",
                hint="use the version of teachonce that made the store, or restore the store from a copy",
            )
    return params_NV


def _derive(
    spec: StoreSpec, keys: Sequence[str], valid_N: NDArray[np.bool_], sizes_N2: NDArray[Any], views: Sequence[int]
) -> Views:
    assert spec.drawing is not None
    found, usable = no_views(len(keys), len(views)), np.flatnonzero(valid_N & (sizes_N2 > 0).all(axis=1))
    found[usable] = spec.drawing.params([keys[place] for place in usable.tolist()], sizes_N2[usable], views)
    return found


def _as_bytes(params_NV: Views) -> NDArray[np.void]:
    """The records as bytes: NaN equals itself."""
    return np.ascontiguousarray(params_NV).view(f"V{VIEW.itemsize}")


def _text(view: np.void) -> str:
    return ", ".join(f"{name} {view[name]:g}" for name in view.dtype.names or ())


def _digests(params_NV: Views) -> NDArray[np.uint8]:
    """blake2b of 8 bytes for each view, over the records of all rows: uint8 (view, byte)."""
    digests = [
        hashlib.blake2b(np.ascontiguousarray(params_NV[:, view]).tobytes(), digest_size=_DIGEST_BYTES).digest()
        for view in range(params_NV.shape[1])
    ]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_BYTES)
