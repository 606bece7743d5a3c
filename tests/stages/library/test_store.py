"""A target store as an object: its numbers against what was written, by rows and keys of every form; what it refuses."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import teachonce
import xarray
from PIL import Image
from teachonce import open_store
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.corpora.images import decode
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.library.store import TargetStore
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.views.render import render
from teachonce.storage_schemas.errors import DamagedError, IncompleteError, InputError

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def store(taught_store) -> TargetStore:
    return open_store(str(taught_store.location))


def test_facts(store, taught_store):
    entries = list(taught_store.shards.manifest())
    assert (len(store), store.num_views, store.class_names) == (48, 3, tuple("abcdefg"))
    assert store.keys().tolist() == [entry.key for entry in entries]
    assert store.paths() == [entry.path for entry in entries]
    assert store.labels() == [entry.label for entry in entries]
    np.testing.assert_array_equal(store.valid(), taught_store.valid)
    assert {name: target.shape for name, target in store.targets.items()} == {"logits": (7,), "embedding": (6,)}
    assert (store.teacher["model"], store.is_complete) == ("T", True)
    assert store.fingerprint == store._stored.receipts.ledgers[0].plan().fingerprint.digest
    assert [list(rows) for rows in store.shards()] == [list(range(n, min(n + 13, 48))) for n in (0, 13, 26, 39)]
    assert repr(store) == f"TargetStore('{taught_store.location}', 48 rows, 3 views, logits, embedding)"


@pytest.mark.parametrize(
    "rows",
    [
        None,
        7,
        -1,
        [40, 3, 3, 12, -2],
        slice(10, 30),
        slice(None, None, -7),
        range(11, 27),
        np.arange(48) % 5 == 0,
        np.array([47, 0], np.uint8),
        [],
        slice(5, 5),
    ],
    ids=str,
)
def test_rows_of_every_form(store, taught_store, rows):
    index = slice(None) if rows is None else np.array(rows, int) if isinstance(rows, list) else rows
    index = np.array(rows) if isinstance(rows, range) else index
    for name, read in (("logits", store.logits), ("embedding", store.embeddings)):
        expected = taught_store.targets[name][index]
        np.testing.assert_array_equal(read(rows), expected[..., 0, :])
        np.testing.assert_array_equal(read(rows, view=None), expected)
        np.testing.assert_array_equal(store.target(name, rows, view=[2, 0]), expected[..., [2, 0], :])
    np.testing.assert_array_equal(store.valid(rows), taught_store.valid[index])


def test_keys_name_rows(store, taught_store):
    keys = store.keys([30, 2, 47])
    for form in (keys, keys.tolist(), tuple(keys)):
        np.testing.assert_array_equal(store.logits(form), taught_store.targets["logits"][[30, 2, 47], 0])
    key = store.keys(30)
    assert store.logits(key, view=1).tolist() == taught_store.targets["logits"][30, 1].tolist()
    assert (store.keys(key), store.paths(key), store.find(key[:12]), store.find(store.paths(30))) == (
        key,
        store.paths(30),
        30,
        30,
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_probabilities(store, taught_store, temperature):
    logits = taught_store.targets["logits"].astype(np.float64) / temperature
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(store.probabilities(view=None, temperature=temperature), expected, atol=1e-6)
    assert store.probabilities(3, temperature=temperature).shape == (7,)
    assert np.isnan(store.probabilities(5)).all()  # row 5 is not valid


def test_logits_are_formed_from_embeddings(taught_store, picture_shards, make_store, tmp_path):
    vectors = open_store(str(taught_store.location)).class_vectors
    known = make_store(picture_shards, tmp_path / "s.zarr", widths={"embedding": 6}, vectors=vectors)
    store = open_store(tmp_path / "s.zarr")
    expected = np.float32(20) * known.targets["embedding"] @ vectors.vectors_CD.T
    np.testing.assert_allclose(store.logits(view=None), expected, rtol=1e-5, atol=1e-4)
    assert list(store.targets) == ["embedding"]


def test_views_and_pictures(store, taught_store):
    for row, view in ((1, 0), (29, 2)):
        image = decode(taught_store.shards.reader(row // 13).read(row))
        record = store.views(row, view=view)
        assert record == taught_store.views.params(store.keys(row), *image.size)[view]
        expected = render(image, record, 40, taught_store.views)
        np.testing.assert_array_equal(store.picture(row, view=view, edge=40), expected)
    small = Image.open(io.BytesIO(store.thumbnail(store.keys(1), edge=32)))
    assert (small.format, small.size) == ("WEBP", (32, 32))
    store.close()
    assert store.picture(1, edge=8).shape == (8, 8, 3)
    bad = int(np.flatnonzero(~taught_store.valid & (np.arange(48) != 5))[0])
    with pytest.raises(InputError, match="an image cannot be used"):
        store.picture(bad)


def test_as_a_data_set(store, taught_store):
    data = store.xarray()
    assert isinstance(data, xarray.Dataset)
    logits = taught_store.targets["logits"]
    np.testing.assert_array_equal(data.logits.values, logits)
    np.testing.assert_array_equal(data.logits[40:2:-3, 1, [6, 0]].values, logits[40:2:-3, 1][:, [6, 0]])
    np.testing.assert_array_equal(data.logits.isel(sample=[9, 0], view=2, logits=3).values, logits[[9, 0], 2, 3])
    np.testing.assert_array_equal(data.embedding[3].values, taught_store.targets["embedding"][3])
    np.testing.assert_array_equal(data.valid.values, taught_store.valid)
    assert data.key[12].item() == store.keys(12)
    assert data.view_params.sel(parameter="width")[1, 2].item() == store.views(1, view=2)["width"]
    assert data.attrs["fingerprint"] == store.fingerprint


def test_a_data_set_has_the_classes_by_name():
    store = open_store(DATA / "0.1.0" / "store.zarr")
    data = store.xarray()
    assert dict(data.sizes) == {"sample": 12, "view": 2, "channel": 8, "class": 3, "parameter": 5}
    np.testing.assert_array_equal(data.logits.sel({"class": "red fox"}).values, store.logits(view=None)[..., 2])


def test_a_data_set_forms_logits_too(taught_store, picture_shards, make_store, tmp_path):
    vectors = open_store(str(taught_store.location)).class_vectors
    make_store(picture_shards, tmp_path / "s.zarr", widths={"embedding": 6}, vectors=vectors)
    store = open_store(tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.xarray().logits[2:9, 1].values, store.logits(slice(2, 9), view=1))


def test_a_target_of_several_axes(tmp_path):
    """The maps of a real store, some of whose chunks hold less than a shard."""
    store = open_store(DATA / "maps" / "maps.zarr")
    for name, target in store.targets.items():
        whole = store.target(name, view=None)
        assert whole.shape == (len(store), store.num_views, *target.shape)
        raw = np.asarray(store._stored.root[name][:], np.float32)
        np.testing.assert_array_equal(whole, raw)
        np.testing.assert_array_equal(store.target(name, [5, 1, 3], view=0), raw[[5, 1, 3], 0])
        np.testing.assert_array_equal(store.xarray()[name][1:3].values, raw[1:3])


def test_a_shard_is_read_once_while_it_is_at_hand(store, taught_store, monkeypatch):
    reads = []
    from teachonce.stages.pairs import target_rows

    real = target_rows.read_target
    monkeypatch.setattr(target_rows, "read_target", lambda *a: reads.append(a[2:5]) or real(*a))
    fresh = open_store(str(taught_store.location))
    for row in (0, 12, 5, 14, 0):
        fresh.logits(row)
    assert reads == [(0, "logits", 0), (1, "logits", 0)]
    small = open_store(str(taught_store.location), cache_bytes=1)
    reads.clear()
    small.logits([0, 14, 1, 15])
    small.logits(0)
    assert reads == [(0, "logits", 0), (1, "logits", 0), (0, "logits", 0)]


def test_threads_read_at_once(store, taught_store):
    fresh = open_store(str(taught_store.location), cache_bytes=1)
    rows = np.random.default_rng(0).integers(0, 48, (64, 9))
    barrier = threading.Barrier(8)

    def read(which: int) -> np.ndarray:
        if which < 8:
            barrier.wait(30)
        return fresh.embeddings(rows[which])

    with ThreadPoolExecutor(8) as threads:
        for which, found in enumerate(threads.map(read, range(64))):
            np.testing.assert_array_equal(found, taught_store.targets["embedding"][rows[which], 0])


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda s: s.logits(48),
            "the store has no such row: expected a row from 0 to 47, found 48 [store-place-missing]",
        ),
        (
            lambda s: s.logits([1, -49]),
            "the store has no such row: expected a row from 0 to 47, found -49 [store-place-missing]",
        ),
        (
            lambda s: s.logits(0, view=3),
            "the store has no such view: expected a view from 0 to 2, found 3 [store-place-missing]",
        ),
        (
            lambda s: s.logits("nokey"),
            "no such sample: nokey [sample-unknown]. Next: give a whole key; `store.find` takes the beginning of one, or a path",
        ),
        (
            lambda s: s.logits(1.5),
            "not rows of a store: rows: expected a row, a key, several of either, a slice, or a mask of all rows, "
            "found float of float64, shape () [rows-malformed]",
        ),
        (
            lambda s: s.probabilities(0, temperature=0),
            "impossible setting: --temperature: expected a finite number above 0, found 0 [setting-impossible]",
        ),
        (
            lambda s: s.thumbnail(0, edge=0),
            "impossible setting: --edge: expected 1 pixel at least, found 0 [setting-impossible]",
        ),
    ],
)
def test_refusals(store, call, line):
    with pytest.raises(InputError) as error:
        call(store)
    assert error.value.line == line


def test_a_target_that_is_not_stored(store, taught_store):
    with pytest.raises(InputError) as error:
        store.target("tokens")
    assert error.value.line == (
        f"the store has no such target: {taught_store.location}: expected logits, embedding, found tokens [target-not-stored]"
    )


def test_without_its_shards(taught_store, tmp_path):
    copy = shutil.copytree(taught_store.location.path, tmp_path / "copy.zarr")
    store = open_store(copy, shards=taught_store.shards.location.path)
    assert store.paths(3)
    fresh = open_store(copy)
    moved = tmp_path / "gone"
    object.__setattr__(fresh._stored, "shards", None)
    object.__setattr__(fresh._stored, "no_paths", f"{moved} is gone")
    for call in (fresh.paths, fresh.labels, lambda: fresh.picture(0)):
        with pytest.raises(InputError) as error:
            call()
        assert error.value.line == (
            f"the shards of this store are not at hand: {copy}: found {moved} is gone [store-without-shards]. "
            "Next: open_store(…, shards=FOLDER)"
        )
    assert fresh.logits(0).shape == (7,)


def test_an_unfinished_store_gives_what_is_done(picture_shards, make_store, tmp_path):
    known = make_store(picture_shards, tmp_path / "s.zarr", num_shards=2)
    store = open_store(tmp_path / "s.zarr")
    assert not store.is_complete
    for rows in store.shards():
        np.testing.assert_array_equal(store.logits(rows), known.targets["logits"][rows.start : rows.stop, 0])
    assert store.find(store.keys(3)) == 3
    with pytest.raises(IncompleteError, match="this sample is not cached yet"):
        store.logits(30)
    with pytest.raises(IncompleteError, match="the store gives no logits"):
        open_store(DATA / "maps" / "maps.zarr").logits(0)


def test_a_flipped_bit_is_found(taught_store, tmp_path):
    copy = shutil.copytree(taught_store.location.path, tmp_path / "copy.zarr")
    chunk = next(path for path in (copy / "logits" / "c").rglob("*") if path.is_file())
    data = bytearray(chunk.read_bytes())
    data[9] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(DamagedError) as error:
        open_store(copy).logits()
    assert error.value.code == "chunk-changed"


def test_reading_needs_no_torch(taught_store):
    code = (
        "import sys, teachonce; s = teachonce.open_store(sys.argv[1]); s.probabilities(0); s.picture(0, edge=9); s.keys();"
        "print([m for m in ('torch', 'open_clip', 'timm', 'ray', 'xarray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(taught_store.location)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
    assert teachonce.open_store is open_store


def test_rows_that_are_nobodys(make_store, stage_inputs, tmp_path):
    """A corpus that grew behind a short shard: its array has rows without a sample, which are neither valid nor an error."""
    for index in range(6):
        stage_inputs.draw_picture(tmp_path / "pictures" / f"{index}.png", index)
    stage_inputs.shard_folder(tmp_path / "pictures", tmp_path / "shards", shard_size=4)
    for index in range(6, 9):
        stage_inputs.draw_picture(tmp_path / "pictures" / f"{index}.png", index)
    stage = plan_shard(
        [str(tmp_path / "pictures")],
        out=str(tmp_path / "shards"),
        settings=ShardSettings(shard_size=4, name="pictures", order="source", append=True),
    )
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    make_store(ShardSet.open(str(tmp_path / "shards")), tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    rows = [row for part in store.shards() for row in part]
    assert (len(store), rows) == (11, [0, 1, 2, 3, 4, 5, 8, 9, 10])
    assert np.flatnonzero(store.valid()).tolist() == rows
    assert np.flatnonzero(~np.isnan(store.logits(view=None)).any((1, 2))).tolist() == rows
    assert [store.paths(row) for row in (5, 6, 8)] == ["5.png", "", "6.png"]
    assert (store.keys(6), store.find(store.keys(8)), store.labels([7, 8])) == ("", 8, [None, None])
    assert store.views(7)["height"] == -1
    assert store.xarray().valid.values.sum() == 9
