"""The target store against plain Zarr and xarray."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray
import zarr
from teachonce.storage_schemas.class_vectors import ClassVectors, read_class_vectors, write_class_vectors
from teachonce.storage_schemas.encodings import ENCODINGS
from teachonce.storage_schemas.errors import DamagedError, IncompleteError, MismatchError
from teachonce.storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from teachonce.storage_schemas.target_store import (
    TargetBlock,
    check_version,
    create_arrays,
    open_root,
    read_block,
    read_rows,
    read_target,
    write_block,
)
from teachonce.storage_schemas.view_params import NO_VIEW, from_columns, no_views

ROWS, SHARD, VIEWS, CLASSES, CHANNELS = 7, 3, 2, 5, 4


def described(spec: StoreSpec) -> StoreDescription:
    return StoreDescription(spec=spec, fingerprint={"corpus_id": "c"}, views={}, teacher={}, shards="shards")


def make_spec(encoding: str, colors: bool = False) -> StoreSpec:
    return StoreSpec(
        num_samples=ROWS,
        shard_size=SHARD,
        num_views=VIEWS,
        encoding=ENCODINGS[encoding],
        colors=colors,
        targets=(
            TargetSpec(name="embedding", axes=("sample", "view", "channel"), shape=(CHANNELS,)),
            TargetSpec(name="logits", axes=("sample", "view", "class"), shape=(CLASSES,)),
        ),
    )


def make_block(rows: int, seed: int, colors: bool) -> TargetBlock:
    rng = np.random.default_rng(seed)
    valid = np.ones(rows, bool)
    valid[0] = False
    targets = {
        "embedding": rng.normal(size=(rows, VIEWS, CHANNELS)).astype(np.float32),
        "logits": (20 + 5 * rng.normal(size=(rows, VIEWS, CLASSES))).astype(np.float32),
    }
    for values in targets.values():
        values[~valid] = np.nan
    numbers = rng.integers(0, 99, (rows, VIEWS, 7 if colors else 5)).astype(np.int32)
    params = from_columns(numbers, rng.random((rows, VIEWS, 4), np.float32) if colors else None)
    params[~valid] = NO_VIEW
    return TargetBlock(
        keys=[f"{seed:02d}{i:030d}" for i in range(rows)], valid=valid, view_params=params, targets=targets
    )


@pytest.fixture(params=[("fp32", False), ("fp16", False), ("fp32", True)], ids=["fp32", "fp16", "colors"])
def store(request, tmp_path):
    encoding, colors = request.param
    spec = make_spec(encoding, colors)
    path = str(tmp_path / "store")
    root = open_root(path, mode="a")
    create_arrays(root, described(spec))
    blocks = [make_block(min(SHARD, ROWS - i * SHARD), i, colors) for i in range(spec.num_shards)]
    written = [write_block(root, spec, i, block) for i, block in enumerate(blocks)]
    return path, spec, blocks, written


def test_blocks_come_back(store):
    path, spec, blocks, _ = store
    root = open_root(path)
    assert StoreDescription.read(root, path) == described(spec)
    tolerance = 0 if spec.encoding.name == "fp32" else 2e-3
    for shard, block in enumerate(blocks):
        found = read_block(root, spec, shard)
        assert found.keys == block.keys
        np.testing.assert_array_equal(found.valid, block.valid)
        assert found.view_params.tobytes() == block.view_params.tobytes()
        assert read_rows(root, spec, shard, 1)[2].tobytes() == block.view_params[:, 1].tobytes()
        for name in block.targets:
            np.testing.assert_allclose(found.targets[name], block.targets[name], rtol=tolerance, atol=5 * tolerance)
            one_view = read_target(root, spec, shard, name, 1)
            np.testing.assert_array_equal(one_view, found.targets[name][:, 1])
    if spec.encoding.name == "fp32":
        assert read_block(root, spec, 0).digest == blocks[0].digest


def test_every_chunk_is_a_file_of_its_own_unit(store, tmp_path):
    _, spec, _, written = store
    files = {p.relative_to(tmp_path / "store").as_posix() for p in (tmp_path / "store").rglob("c/**/*") if p.is_file()}
    assert files == {path for paths in written for path in paths}
    assert len(set().union(*map(set, written))) == sum(map(len, written))
    assert any(path.startswith("logits_max/") for path in written[0]) == spec.encoding.separate_max
    assert any(path.startswith("view_colors/") for path in written[0]) == spec.colors


def test_xarray_and_zarr_open_it_without_a_warning(store):
    path, _, blocks, _ = store
    data = xarray.open_zarr(path, consolidated=False)
    assert data.sizes["sample"] == ROWS
    assert (data.sizes["view"], data.sizes["class"], data.sizes["channel"]) == (VIEWS, CLASSES, CHANNELS)
    np.testing.assert_array_equal(data["valid"][:SHARD], blocks[0].valid)
    assert data["view_params"].attrs["columns"][:5] == ["top", "left", "height", "width", "flip"]
    assert data.sizes["view_param"] == (7 if "view_colors" in data else 5)
    plain = zarr.open_group(path, mode="r")
    assert {name for name, _ in plain.arrays()} >= {"keys", "valid", "view_params", "embedding", "logits"}


def test_a_flipped_bit_is_noticed(store, tmp_path):
    path, spec, _, _ = store
    chunk = tmp_path / "store" / "embedding" / "c" / "1" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(DamagedError) as error:
        read_target(open_root(path), spec, 1, "embedding", 0)
    assert (error.value.code, str(error.value.where)) == ("chunk-damaged", "embedding, shard 1, view 0")
    assert "checksum" in str(error.value.found)


def test_an_all_invalid_shard_still_writes_its_chunks(tmp_path):
    spec = make_spec("fp32")
    root = open_root(str(tmp_path / "s"), mode="a")
    create_arrays(root, described(spec))
    empty = TargetBlock(
        keys=["0" * 32] * SHARD,
        valid=np.zeros(SHARD, bool),
        view_params=no_views(SHARD, VIEWS),
        targets={
            "embedding": np.full((SHARD, VIEWS, CHANNELS), np.nan, np.float32),
            "logits": np.full((SHARD, VIEWS, CLASSES), np.nan, np.float32),
        },
    )
    for path in write_block(root, spec, 0, empty):
        assert (tmp_path / "s" / path).exists(), path


def test_class_vectors_come_back_and_changes_are_noticed(tmp_path):
    rng = np.random.default_rng(0)
    vectors = ClassVectors(
        names=("red fox", "blåbær"),
        vectors_CD=rng.normal(size=(2, 3)).astype(np.float32),
        bias_C=np.array([1, 2], np.float32),
        logit_scale=50.0,
        normalized=True,
    )
    root = open_root(str(tmp_path / "s"), mode="a")
    with pytest.raises(IncompleteError) as error:
        read_class_vectors(root, "here")
    assert (error.value.code, str(error.value.where)) == ("vectors-missing", "here")
    assert str(error.value.hint).startswith("teachonce vectors")
    write_class_vectors(root, vectors, {"teacher": "test"})
    found = read_class_vectors(root, "here")
    assert (found.names, found.logit_scale, found.normalized) == (vectors.names, 50.0, True)
    embedding_ND = rng.normal(size=(4, 3)).astype(np.float32)
    expected = 50.0 * np.einsum("nd,cd->nc", embedding_ND, vectors.vectors_CD) + vectors.bias_C
    np.testing.assert_allclose(found.logits(embedding_ND), expected, rtol=1e-5)
    root["class_vectors"][0, 0] += 1
    with pytest.raises(DamagedError) as damage:
        read_class_vectors(root, "here")
    assert damage.value.code == "vectors-changed"


def test_another_zarr_group_is_refused(tmp_path):
    other = zarr.open_group(str(tmp_path / "other"), mode="w")
    with pytest.raises(MismatchError) as error:
        check_version(other, "other")
    assert (error.value.code, str(error.value.where), str(error.value.expected)) == (
        "store-other-kind",
        "other",
        "the attribute `teachonce` of kind 'target store'",
    )
    assert str(error.value.found).startswith("None")
    with pytest.raises(IncompleteError) as incomplete:
        StoreDescription.read(other, "other")
    assert incomplete.value.code == "store-without-targets"


def test_threads_that_write_at_once_leave_no_chunk_out(tmp_path):
    """Whole shards of invalid samples equal the fill value; Zarr skips such chunks unless each writer says otherwise."""
    spec = StoreSpec(
        num_samples=64,
        shard_size=1,
        num_views=1,
        encoding=ENCODINGS["fp32"],
        targets=(TargetSpec(name="embedding", axes=("sample", "view", "channel"), shape=(2,)),),
    )
    root = open_root(str(tmp_path / "s"), mode="a")
    create_arrays(root, described(spec))
    block = TargetBlock(
        keys=["0" * 32],
        valid=np.zeros(1, bool),
        view_params=no_views(1, 1),
        targets={"embedding": np.full((1, 1, 2), np.nan, np.float32)},
    )
    with ThreadPoolExecutor(4) as threads:
        written = list(threads.map(lambda shard: write_block(root, spec, shard, block), range(64)))
    missing = [path for paths in written for path in paths if not (tmp_path / "s" / path).exists()]
    assert missing == []
