"""A second teacher's store beside the first: the same rows in the same views, or a clear refusal."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import zarr
from teachonce.stages.pairs.other_store import OtherStore
from teachonce.stages.pairs.store import open_store, store_facts
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import InputError, MismatchError
from teachonce.storage_schemas.store_description import StoreDescription

VIEWS = {"kind": "random_resized_crop", "count": 3, "seed": 5}


def about(known) -> StoreDescription:
    return StoreDescription.read(open_store(known.location), known.location)


@pytest.fixture
def second(picture_shards, make_store, tmp_path):
    """`second(…)`: a store of another teacher on the same pictures, opened beside the known one."""

    def make(first, *, views=None, shards=picture_shards, also_invalid=(), num_views=3, widths=None):
        store = make_store(
            shards,
            tmp_path / "second.zarr",
            views=ViewSpec(**(VIEWS | (views or {}))),
            also_invalid=also_invalid,
            widths=widths or {"embedding": 9},
        )
        given = f"big={store.location}"
        return store, OtherStore.named(given, picture_shards, first.location, about(first), num_views)

    return make


@pytest.mark.parametrize("workers", [0, 1])
def test_targets_of_both_come_row_by_row(known_store, second, workers):
    store, other = second(known_store, also_invalid=(5,), views={"interpolation": "bilinear"})
    assert pickle.loads(pickle.dumps(other)) == other
    assert other.identity == {"name": "big", "store": other.fingerprint}
    with TargetStream(
        known_store.shards,
        known_store.location,
        image_size=8,
        batch_size=7,
        num_workers=workers,
        targets=("embedding", "big:embedding"),
        sources=(other,),
        drop_last=False,
    ) as stream:
        for epoch in range(4):
            rows = []
            for batch in stream.batches(epoch):
                here = batch.rows_N.numpy()
                assert np.array_equal(batch.targets["embedding"], known_store.targets["embedding"][here, epoch % 3])
                assert np.array_equal(batch.targets["big:embedding"], store.targets["embedding"][here, epoch % 3])
                rows += here.tolist()
            assert sorted(rows) == np.flatnonzero(known_store.valid).tolist()
        with_other = stream.state_dict()
    with TargetStream(known_store.shards, known_store.location, image_size=8, batch_size=7) as plain:
        assert "sources" not in plain.state_dict()
        with pytest.raises(MismatchError, match="the state of another stream"):
            plain.load_state_dict(with_other)


@pytest.mark.parametrize(
    ("views", "field"), [({"seed": 6}, "seed"), ({"scale": (0.5, 1.0)}, "scale"), ({"flip": 0.0}, "flip")]
)
def test_other_views_are_refused(known_store, second, views, field):
    with pytest.raises(InputError, match=rf"two stores are of different views of the images.*field 'views\.{field}'"):
        second(known_store, views=views)


def test_fewer_views_than_are_read(known_store, second):
    with pytest.raises(InputError) as error:
        second(known_store, views={"count": 2})
    assert "another store has fewer views" in str(error.value)
    assert "expected 3 views, found 2. Next: --views 2 reads the first of both" in str(error.value)
    second(known_store, views={"count": 2}, num_views=2)


def test_another_corpus_is_refused(known_store, second, pictures, make_shards, tmp_path):
    others = make_shards(pictures, tmp_path / "others", shard_size=20)
    with pytest.raises(MismatchError, match="the store was made from another corpus"):
        second(known_store, shards=others)


def test_an_image_that_only_one_teacher_could_use(known_store, second):
    store, other = second(known_store, also_invalid=(5, 9))
    options: dict[str, Any] = {"image_size": 8, "batch_size": 45, "targets": ("big:embedding",), "sources": (other,)}
    with (
        TargetStream(known_store.shards, known_store.location, **options) as stream,
        pytest.raises(MismatchError) as error,
    ):
        next(stream.batches(1))
    assert f"another store has no targets of an image: {store.location}, row 9, view 1" in str(error.value)


def test_rows_of_other_samples_or_boxes(known_store, second):
    """What a hand-made store may hold: everything that describes it fits, and its rows do not."""
    store, _ = second(known_store, also_invalid=(5,))
    facts = store_facts(store.location)
    row = int(np.flatnonzero(known_store.valid)[3])
    for array, what in (("keys", "other samples in the same row"), ("view_params", "other views of an image")):
        other = OtherStore(name="big", fingerprint="f", facts=facts, vectors=None)
        root = zarr.open_group(str(store.location), mode="r")
        arrays: dict[str, Any] = {name: root[name][:] for name in root.array_keys()}
        arrays[array][row] = arrays[array][row - 1] if array == "keys" else arrays[array][row] + [1, 0, 0, 0, 0]
        object.__setattr__(other, "_arrays", arrays)
        other.__dict__["_arrays"] = arrays
        options: dict[str, Any] = {
            "image_size": 8,
            "batch_size": 45,
            "targets": ("big:embedding",),
            "sources": (other,),
        }
        with (
            TargetStream(known_store.shards, known_store.location, **options) as stream,
            pytest.raises(MismatchError, match=what),
        ):
            next(stream.batches(0))


@pytest.mark.parametrize("given", ["store.zarr", "=store.zarr", "big=", "b g=store.zarr", "a:b=store.zarr"])
def test_a_store_is_given_with_a_name(known_store, given):
    with pytest.raises(InputError, match="another store is given with a name"):
        OtherStore.named(given, known_store.shards, known_store.location, about(known_store), 3)


def test_no_store_there(known_store, tmp_path):
    with pytest.raises(InputError, match="no target store here"):
        OtherStore.named(f"a={tmp_path}", known_store.shards, known_store.location, about(known_store), 3)
