"""A generation of labels: a receipt vouches for each of its files, so each is written."""

from __future__ import annotations

import numpy as np
import zarr
from teachonce.storage_schemas.label_store import (
    NO_LABEL,
    GenerationAbout,
    LabelSpec,
    create_label_store,
    write_generation,
)


def test_chunks_without_any_label_are_written(tmp_path):
    spec = LabelSpec(corpus_id="c", num_rows=10, shard_size=4, vocabulary="v", num_names=1)
    root = zarr.open_group(str(tmp_path), mode="a", zarr_format=3)
    create_label_store(root, spec)
    paths = write_generation(root, spec, 2, np.full(10, NO_LABEL, np.int32), GenerationAbout(names=[], origin={}))
    assert paths == ["generation_2/zarr.json", "generation_2/c/0", "generation_2/c/1", "generation_2/c/2"]
    assert all((tmp_path / path).is_file() for path in paths)
