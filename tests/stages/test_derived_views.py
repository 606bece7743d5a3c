"""Stores that derive the parameters of views: the same to every reader as stores that have them, however they came about."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import teachonce
import xarray
import zarr
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.cache import plan_cache
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.fill_mended import fill_mended, store_teacher
from teachonce.stages.grow import plan_growth
from teachonce.stages.measures.stored import Stored
from teachonce.stages.models.compute import Compute
from teachonce.stages.pairs.store import open_store, read_description, store_facts
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.recode import plan_recode
from teachonce.stages.reports.inspect_sample import inspect_sample
from teachonce.stages.retry_failed import plan_retry
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.recode import RecodeSettings
from teachonce.stages.settings.retry_failed import RetrySettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.settings.store_teacher import StoreTeacherSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import DamagedError, InputError, MismatchError
from teachonce.storage_schemas.target_store import read_block, read_params

FP32 = Compute(device="cpu", precision="fp32", threads=1)
COLORED: dict[str, Any] = {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_probability": 0.8, "grayscale": 0.2}


@pytest.fixture(scope="module")
def teacher(tiny_clip_teacher) -> TeacherConfig:
    return TeacherConfig(model=f"local-dir:{tiny_clip_teacher}")


def arguments(out, views, *, params: str | None = "derived", **settings: Any) -> dict[str, Any]:
    return {
        "out": str(out),
        "views": None if views is None else ViewSpec(kind="random_resized_crop", count=views, seed=3, **COLORED),
        "settings": CacheSettings(**{"batch_size": 16, "targets": "embedding", "view_params": params, **settings}),
        "compute": FP32,
    }


def cache(shards, teacher, out, views: int | None = 4, executor=None, **options) -> Location:
    stage = plan_cache(str(shards.location), teacher, **arguments(out, views, **options))
    run_stage(stage, stage.store, executor or SerialExecutor(), progress=False)
    return stage.store


def grow(shards, teacher, out, views, **options) -> list[str]:
    notes: list[str] = []
    for step in plan_growth(str(shards.location), teacher, **arguments(out, views, **options)):
        run_stage(step.stage, step.store, SerialExecutor(), progress=False)
        notes += step.notes
    return notes


def recode(store, out, **settings) -> Location:
    stage = plan_recode(str(store), out=str(out), settings=RecodeSettings(**settings))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return stage.out


def shard(folder, out, size=13, **options) -> ShardSet:
    stage = plan_shard([str(folder)], out=str(out), settings=ShardSettings(shard_size=size, **options))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return ShardSet.open(str(out))


def blocks(store, generation=None):
    root = open_store(Location.of(store), generation)
    spec = read_description(root, Location.of(store)).spec
    return [read_block(root, spec, number) for number in range(spec.num_shards)]


def files(folder) -> dict[str, bytes]:
    """Every file of a store but notes."""
    root = Path(str(folder))
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and "timings" not in p.parts
    }


def arrays(store) -> set[str]:
    return {Path(name).parts[0] for name in files(store) if "/c/" in name}


def same_rows(one, other) -> None:
    for left, right in zip(blocks(one), blocks(other), strict=True):
        assert left.view_params.tobytes() == right.view_params.tobytes()
        assert left.digest == right.digest


@pytest.fixture(scope="module")
def stored(picture_shards, teacher, tmp_path_factory) -> Location:
    return cache(picture_shards, teacher, tmp_path_factory.mktemp("stored") / "s.zarr", params=None)


@pytest.fixture(scope="module")
def derived(picture_shards, teacher, tmp_path_factory) -> Location:
    return cache(picture_shards, teacher, tmp_path_factory.mktemp("derived") / "s.zarr")


@pytest.fixture
def copy(derived, tmp_path) -> Location:
    return Location.of(shutil.copytree(str(derived), tmp_path / "copy.zarr"))


def test_every_reader_gets_what_a_store_that_has_them_gives(picture_shards, stored, derived):
    assert arrays(stored) - arrays(derived) == {"view_params", "view_colors"}
    assert arrays(derived) - arrays(stored) == {"image_size", "view_digest"}
    same_rows(stored, derived)
    receipts = [[receipt.digest for receipt in Ledger(store, "cache").receipts()] for store in (stored, derived)]
    assert receipts[0] == receipts[1]
    for epoch in (0, 3, 5):
        pairs = (
            TargetStream(picture_shards, store, image_size=16, batch_size=8, targets=["embedding"]).batches(epoch)
            for store in (stored, derived)
        )
        for one, other in zip(*pairs, strict=True):
            assert one.rows_N.tolist() == other.rows_N.tolist()
            assert one.images_NCHW.numpy().tobytes() == other.images_NCHW.numpy().tobytes()
            assert one.targets["embedding"].numpy().tobytes() == other.targets["embedding"].numpy().tobytes()
    first, second = (teachonce.open_store(str(store)) for store in (stored, derived))
    assert first.views([0, 5, 40], view=None).tobytes() == second.views([0, 5, 40], view=None).tobytes()
    assert first.xarray()["view_params"].equals(second.xarray()["view_params"])
    key = first.keys(14)
    shown = [inspect_sample(Stored.open(store), key) for store in (stored, derived)]
    assert shown[0]["views"] == shown[1]["views"]


def test_plain_zarr_finds_sizes_and_digests(derived, picture_shards, pictures):
    from PIL import Image

    data = xarray.open_zarr(str(derived), consolidated=False)
    assert data["image_size"].dims == ("sample", "side")
    assert data["image_size"].attrs["columns"] == ["height", "width"]
    assert data["view_digest"].sizes == {"shard": 4, "view": 4, "byte": 8}
    for row, entry in enumerate(picture_shards.manifest()):
        size = data["image_size"].values[row].tolist()
        if bool(data["valid"].values[row]):
            with Image.open(pictures / entry.path) as image:
                assert size == [image.height, image.width]
        else:
            assert size == [-1, -1]


def test_older_readers_refuse_it(derived, stored):
    about = [zarr.open_group(str(store), mode="r").attrs.asdict()["teachonce"] for store in (derived, stored)]
    assert [facts["schema_version"] for facts in about] == [4, 1]
    described = zarr.open_group(str(derived), mode="r").attrs.asdict()["cache"]
    assert described["spec"]["view_params"] == described["fingerprint"]["view_params"] == "derived"
    plain = zarr.open_group(str(stored), mode="r").attrs.asdict()["cache"]
    assert "view_params" not in plain["spec"]
    assert "view_params" not in plain["fingerprint"]


def test_centre_views_are_derived_too(picture_shards, teacher, tmp_path):
    one = cache(picture_shards, teacher, tmp_path / "a.zarr", None, params="stored")
    other = cache(picture_shards, teacher, tmp_path / "b.zarr", None)
    same_rows(one, other)


class Dying(SerialExecutor):
    """Ends after some units, as a killed process does: nothing is tidied up."""

    def map(self, stage, ledger, units, board):
        yield from itertools.islice(super().map(stage, ledger, units, board), 2)
        raise KeyboardInterrupt


def test_killed_and_resumed_it_ends_with_the_same_bytes(picture_shards, teacher, derived, tmp_path):
    out = tmp_path / "s.zarr"
    with pytest.raises(KeyboardInterrupt):
        cache(picture_shards, teacher, out, executor=Dying())
    (out / "view_digest" / "c" / "1" / "0" / "0").write_bytes(b"torn")  # a unit in flight
    (out / "ledger" / "cache" / "receipts" / "000001.json").unlink()
    assert len(files(out)) < len(files(derived))
    cache(picture_shards, teacher, out)
    assert files(out) == files(derived)
    for params in ("stored", None):
        with pytest.raises(MismatchError) as caught:
            cache(picture_shards, teacher, out, params=params)
        assert str(caught.value.where).endswith(": field 'view_params' (and 1 more field)")
        assert (caught.value.expected, caught.value.found) == ("nothing (this command)", "'derived' (the folder)")


@pytest.mark.parametrize("encoding", ["fp16", "int8"])
def test_more_views_are_the_bytes_of_all_at_once(picture_shards, teacher, tmp_path, encoding):
    store = cache(picture_shards, teacher, tmp_path / "s.zarr", encoding=encoding)
    old = files(store)
    assert grow(picture_shards, teacher, store, 8, params=None) == ["generation 2: 4 to 8 views"]
    once = cache(picture_shards, teacher, tmp_path / "once.zarr", 8, chunk_views=4, encoding=encoding)
    same_rows(store, once)
    chunks = {name: data for name, data in files(store).items() if "/c/" in name}
    assert chunks == {name: data for name, data in files(once).items() if "/c/" in name}
    assert all(chunks[name] == data for name, data in old.items() if "/c/" in name)
    first = blocks(store, "1")
    for block, whole in zip(first, blocks(store), strict=True):
        assert block.view_params.tobytes() == np.ascontiguousarray(whole.view_params[:, :4]).tobytes()
    assert zarr.open_group(str(store), mode="r").attrs.asdict()["teachonce"]["schema_version"] == 4
    with pytest.raises(MismatchError) as caught:
        grow(picture_shards, teacher, store, 12, params="stored")
    assert "field 'view_params': expected derived (the store), found stored (this command)" in str(caught.value)
    assert "leave out --view-params: a store keeps what it began with" in str(caught.value)


def test_more_images_and_mended_ones(pictures, teacher, tmp_path):
    folder = Path(shutil.copytree(pictures, tmp_path / "photos"))
    later = folder / "house-cat"
    late = sorted(later.glob("*.jpg"))[:5]
    away = tmp_path / "away"
    away.mkdir()
    for file in late:
        shutil.move(str(file), away / file.name)
    shards = shard(folder, tmp_path / "shards")
    stores = [cache(shards, teacher, tmp_path / f"{p}.zarr", params=p) for p in ("stored", "derived")]
    for file in late:
        shutil.move(str(away / file.name), later / file.name)
    shards = shard(folder, tmp_path / "shards", append=True)
    for store in stores:
        before = blocks(store)
        assert grow(shards, teacher, store, 4, params=None) == ["generation 2: 43 to 48 images"]
        assert [block.digest for block in blocks(store, "1")] == [block.digest for block in before]
        assert open_store(store, "1")["valid"].shape == (43,)
    same_rows(*stores)
    assert open_store(stores[1], "1")["view_digest"].shape == (4, 4, 8)
    assert open_store(stores[1])["view_digest"].shape == (5, 4, 8)
    shutil.copyfile(late[0], folder / "Blue_Jay" / "20b.jpg")
    found = plan_retry(str(shards.location), settings=RetrySettings(source=(str(folder),)))
    assert found.stage is not None
    run_stage(found.stage, found.stage.out, SerialExecutor(), progress=False)
    shards = ShardSet.open(str(shards.location))
    for store in stores:
        named = store_teacher(store, StoreTeacherSettings(model=teacher.model))
        for step in fill_mended(shards.location, named):
            run_stage(step.stage, step.store, SerialExecutor(), progress=False)
    same_rows(*stores)
    row = next(row for row, entry in enumerate(shards.manifest()) if entry.path == "Blue_Jay/20b.jpg")
    whole = np.concatenate([block.valid for block in blocks(stores[1])])
    assert whole.sum() == 47
    assert (blocks(stores[1], "2")[row // 13].view_params[row % 13]["height"] == -1).all()
    assert (blocks(stores[1])[row // 13].view_params[row % 13]["height"] > 0).all()


def test_stored_to_derived_and_back(stored, derived, tmp_path):
    there = recode(stored, tmp_path / "there.zarr", view_params="derived")
    chunks = {name: data for name, data in files(there).items() if "/c/" in name}
    assert chunks == {name: data for name, data in files(derived).items() if "/c/" in name}
    back = recode(there, tmp_path / "back.zarr", view_params="stored")
    chunks = {name: data for name, data in files(back).items() if "/c/" in name}
    assert chunks == {name: data for name, data in files(stored).items() if "/c/" in name}
    assert store_facts(back).spec == store_facts(stored).spec
    described = [zarr.open_group(str(store), mode="r").attrs.asdict()["cache"] for store in (there, back)]
    assert [one["fingerprint"].get("view_params") for one in described] == ["derived", None]
    assert [one["fingerprint"]["schema_version"] for one in described] == [4, 1]


@pytest.mark.parametrize("params", [None, "stored"])
def test_some_views_and_samples_of_a_derived_store(derived, stored, tmp_path, params):
    one = recode(stored, tmp_path / "a.zarr", views="3,1", only_shards=(1, 2))
    other = recode(derived, tmp_path / "b.zarr", views="3,1", only_shards=(1, 2), view_params=params)
    assert store_facts(other).spec.view_params == (params or "derived")
    same_rows(one, other)
    again = recode(other, tmp_path / "c.zarr", views="1,")
    root, spec = open_store(again), store_facts(again).spec
    marks = (np.asarray(root["keys"][13:26]).view("S32")[:, 0], np.asarray(root["valid"][13:26]))
    np.testing.assert_array_equal(
        read_params(root, spec, 1, (0,), marks)["left"][:, 0], blocks(derived)[1].view_params["left"][:, 1]
    )


def test_sizes_come_from_the_shards(stored, tmp_path):
    moved = Location.of(shutil.copytree(str(stored), tmp_path / "moved.zarr"))
    attributes = zarr.open_group(str(moved), mode="a").attrs
    from teachonce.storage_schemas.store_description import StoreDescription

    description = StoreDescription.read(zarr.open_group(str(moved), mode="r"), moved)
    shards = description.shards
    attributes["cache"] = replace(description, shards=str(tmp_path / "gone")).to_json()
    with pytest.raises(InputError) as caught:
        recode(moved, tmp_path / "b.zarr", view_params="derived")
    assert caught.value.code == "shards-needed"
    assert "expected the folder of the store's shards (for --view-params derived)" in str(caught.value)
    same_rows(recode(moved, tmp_path / "c.zarr", view_params="derived", shards=shards), stored)


def test_views_that_nothing_derives_stay_stored(stored, tmp_path, revouch):
    copied = Location.of(shutil.copytree(str(stored), tmp_path / "s.zarr"))
    root = zarr.open_group(str(copied), mode="r+")
    root["view_params"][14, 2, 0] += 1
    revouch(copied)
    with pytest.raises(Exception, match="these views are not what would be derived of them: shard 1, key .*, view 2"):
        recode(copied, tmp_path / "b.zarr", view_params="derived")


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: root["image_size"].__setitem__((14, 0), int(root["image_size"][14, 0]) + 1),
        lambda root: root["view_digest"].__setitem__((1, 0, 0), int(root["view_digest"][1, 0, 0]) ^ 1),
    ],
    ids=["size", "digest"],
)
def test_other_views_than_the_stores_are_refused(picture_shards, copy, revouch, damage):
    damage(zarr.open_group(str(copy), mode="r+"))
    revouch(copy)
    root, spec = open_store(copy), store_facts(copy).spec
    with pytest.raises(MismatchError) as caught:
        read_block(root, spec, 1)
    text = str(caught.value)
    assert text.startswith(
        "the views that are derived are not those that the store was made with: shard 1, view 0: expected "
    )
    assert text.endswith("Next: use the version of teachonce that made the store, or restore the store from a copy")
    assert caught.value.code == "views-derived-differ"
    read_block(root, spec, 2)
    stream = TargetStream(picture_shards, copy, image_size=16, batch_size=8, targets=["embedding"])
    with pytest.raises(MismatchError, match="the views that are derived are not those"):
        list(stream.batches(0))


def test_another_drawing_is_noticed(copy, monkeypatch):
    """As by a version that draws other views."""
    from teachonce.storage_schemas import view_drawing

    root, spec = open_store(copy), store_facts(copy).spec
    monkeypatch.setattr(view_drawing, "_ATTEMPTS", 1)
    with pytest.raises(MismatchError, match="the views that are derived are not those that the store was made with"):
        [read_block(root, spec, shard) for shard in range(4)]


def test_a_wrong_key_is_still_called_one(picture_shards, copy, revouch):
    root = zarr.open_group(str(copy), mode="r+")
    root["keys"][14:16] = np.asarray(root["keys"][14:16])[::-1]
    revouch(copy)
    stream = TargetStream(picture_shards, copy, image_size=16, batch_size=8, targets=["embedding"])
    with pytest.raises(DamagedError, match="the key in the tar is not the key in the store, at 2 rows, the first is 1"):
        list(stream.batches(0))


def test_the_description_decides_the_drawing(copy, revouch):
    root = zarr.open_group(str(copy), mode="r+")
    fields = json.loads(json.dumps(root.attrs["cache"]))
    fields["views"]["seed"] = 4
    fields.pop("seal")
    root.attrs["cache"] = fields
    with pytest.raises(MismatchError, match="the views that are derived are not those"):
        read_block(open_store(copy), read_description(open_store(copy), copy).spec, 0)
