"""Owns writing class vectors into a store, with what a receipt vouches for."""

from __future__ import annotations

import zarr

from ...pipeline.ledger import record_outputs
from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors, write_class_vectors
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.receipt import Output


def write_vectors(
    store: Location, root: zarr.Group, vectors: ClassVectors, origin: Json, folder: str = ""
) -> tuple[Output, ...]:
    """Write class vectors into the store's group, or into a folder of it. Returns their files.

    Args:
        origin: see `write_class_vectors`.
        folder: path of a group within the store; '' for the store's own.
    """
    names = write_class_vectors(root.require_group(folder) if folder else root, vectors, origin)
    paths = []
    for name in names:
        place = f"{folder}/{name}" if folder else name
        chunks = sorted((store / place / "c").entries(deep=True))
        paths += [f"{place}/zarr.json", *(f"{place}/c/{chunk}" for chunk in chunks)]
    return record_outputs(store, paths)


def class_arrays(vectors: ClassVectors) -> list[str]:
    """Names of the arrays that class vectors are written into."""
    marks = ["class_is_base"] if vectors.base_C is not None else []
    bias = ["class_bias"] if vectors.bias_C is not None else []
    return ["class_vectors", "class_names", *marks, *bias]
