"""Rows of mended images in stores: the teacher sees these alone, and everything else stays what it was."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import teachonce
import torch
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.cache import plan_cache
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.fill_mended import fill_mended, store_teacher
from teachonce.stages.grow import plan_growth
from teachonce.stages.models.compute import Compute
from teachonce.stages.pairs.store import open_store, read_description, read_generations, store_facts
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.retry_failed import plan_retry
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.retry_failed import RetrySettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.settings.store_teacher import StoreTeacherSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.status import folder_status, status_text
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import InputError
from teachonce.storage_schemas.target_store import read_block

FP32 = Compute(device="cpu", precision="fp32", threads=1)
SHARD, CUT, EMPTY = 13, "Blue_Jay/20b.jpg", "red fox/07b.jpg"
AGAIN = "Blue_Jay/20c.jpg"


@pytest.fixture
def folder(pictures, tmp_path) -> Path:
    """48 files, of which one is cut and one is empty."""
    return Path(shutil.copytree(pictures, tmp_path / "photos"))


@pytest.fixture
def teacher(tiny_clip_teacher) -> TeacherConfig:
    return TeacherConfig(model=f"local-dir:{tiny_clip_teacher}")


def shard(folder, out, **options) -> ShardSet:
    stage = plan_shard([str(folder)], out=str(out), settings=ShardSettings(shard_size=SHARD, **options))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return ShardSet.open(str(out))


def arguments(out, views, *, chunk_views=None, encoding="fp16"):
    return {
        "out": str(out),
        "views": None if views is None else ViewSpec(kind="random_resized_crop", count=views, seed=3),
        "settings": CacheSettings(targets="embedding", batch_size=8, chunk_views=chunk_views, encoding=encoding),
        "compute": FP32,
    }


def cache(shards, teacher, out, views=None, **settings) -> Location:
    stage = plan_cache(str(shards.location), teacher, **arguments(out, views, **settings))
    run_stage(stage, stage.store, SerialExecutor(), progress=False)
    return stage.store


def mend(pictures, folder, out, *paths) -> ShardSet:
    for number, path in enumerate(paths):
        shutil.copyfile(sorted((pictures / "house-cat").glob("*.jpg"))[number], folder / path)
    found = plan_retry(str(out), settings=RetrySettings(source=(str(folder),)))
    assert found.stage is not None
    run_stage(found.stage, found.stage.out, SerialExecutor(), progress=False)
    return ShardSet.open(str(out))


def fill(shards, store, teacher) -> list[str]:
    """As `retry-failed SHARDS STORE` does once the shards are mended. Returns what is said."""
    notes: list[str] = []
    named = store_teacher(store, StoreTeacherSettings(model=teacher.model))
    for step in fill_mended(shards.location, named):
        run_stage(step.stage, step.store, SerialExecutor(), progress=False)
        notes += step.notes
    return notes


def files(folder) -> dict[str, bytes]:
    root = Path(str(folder))
    found = {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if "timings" not in name}


def blocks(store, name):
    root = open_store(store, name)
    spec = read_description(root, store).spec
    return [read_block(root, spec, number) for number in range(spec.num_shards)]


def column(found, name):
    return np.concatenate([block.targets[name] for block in found])


def row_of(shards, path) -> int:
    return next(row for row, entry in enumerate(shards.manifest()) if entry.path == path)


def test_a_mended_image_gets_the_targets_of_plain_open_clip(
    pictures, folder, tmp_path, teacher, seen, tiny_clip_teacher
):
    shards = shard(folder, tmp_path / "out")
    store = cache(shards, teacher, tmp_path / "s.zarr", encoding="fp32")
    old = files(store)
    del seen[:]
    now = mend(pictures, folder, tmp_path / "out", CUT)
    assert fill(now, store, teacher) == ["generation 2: 1 mended image"]
    assert seen == [1]
    row = row_of(now, CUT)
    before, after = blocks(store, "1"), blocks(store, None)
    assert [int(store_facts(store, name).valid_rows.sum()) for name in ("1", "2")] == [46, 47]
    others = np.arange(48) != row
    np.testing.assert_array_equal(column(after, "embedding")[others], column(before, "embedding")[others])
    assert np.isnan(column(before, "embedding")[row]).all()
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip_teacher}")
    with torch.inference_mode():
        image = transform(Image.open(folder / CUT).convert("RGB"))[None]
        expected = model.eval().encode_image(image, normalize=True).numpy()
    np.testing.assert_allclose(column(after, "embedding")[row], expected, atol=1e-5)
    changed = {name for name, data in files(store).items() if old.get(name) != data}
    assert {name for name in changed if not name.startswith(("generations/", "ledger/cache.2/"))} == {"zarr.json"}
    chunks = [name for name in changed if "/c/" in name and name.startswith("generations/2/mended/embedding/")]
    assert chunks == [f"generations/2/mended/embedding/c/{row // SHARD}/0/0"]
    assert fill(now, store, teacher) == []


@pytest.mark.parametrize("encoding", ["fp16", "int8"])
def test_generations_before_and_after_mending_are_trained_from(pictures, folder, tmp_path, teacher, seen, encoding):
    shards = shard(folder, tmp_path / "out")
    store = cache(shards, teacher, tmp_path / "s.zarr", 4, encoding=encoding)
    now = mend(pictures, folder, tmp_path / "out", CUT, EMPTY)
    del seen[:]
    notes: list[str] = []
    for step in plan_growth(
        str(now.location), teacher, **arguments(store, 8, encoding=None)
    ):  # `cache --grow` mends first
        run_stage(step.stage, step.store, SerialExecutor(), progress=False)
        notes += step.notes
    assert notes == ["generation 2: 2 mended images", "generation 3: 4 to 8 views"]
    assert sum(seen) == 2 * 4 + 48 * 4
    at_once = cache(now, teacher, tmp_path / "once.zarr", 8, chunk_views=4, encoding=encoding)
    both = [column(blocks(one, None), "embedding") for one in (store, at_once)]
    np.testing.assert_allclose(*both, atol=5e-3)
    mended = [row_of(now, path) for path in (CUT, EMPTY)]
    others = ~np.isin(np.arange(48), mended)
    np.testing.assert_array_equal(both[0][others], both[1][others])
    for name, samples, count in (("1", 46, 4), ("2", 48, 4), ("3", 48, 8)):
        with TargetStream(
            now, str(store), image_size=32, batch_size=4, drop_last=False, targets=("embedding",), generation=name
        ) as stream:
            assert (stream.num_samples, stream.num_views) == (samples, count)
            rows = np.concatenate([batch.rows_N.numpy() for batch in stream])
        assert np.isin(mended, rows).all() == (name != "1")
        assert len(rows) == samples


def test_images_that_are_added_and_mended_in_turn(pictures, folder, tmp_path, teacher, seen):
    shards = shard(folder, tmp_path / "out")
    store = cache(shards, teacher, tmp_path / "s.zarr")
    mend(pictures, folder, tmp_path / "out", CUT)
    shutil.copyfile(folder / CUT, folder / "new.jpg")
    shard(folder, tmp_path / "out", append=True)
    now = mend(pictures, folder, tmp_path / "out", EMPTY)
    del seen[:]
    assert fill(now, store, teacher) == [
        "generation 2: 1 mended image",
        "generation 3: 48 to 49 images",
        "generation 4: 1 mended image",
    ]
    assert seen == [1, 1, 1]
    at_once = cache(now, teacher, tmp_path / "once.zarr")
    np.testing.assert_allclose(
        column(blocks(store, None), "embedding"), column(blocks(at_once, None), "embedding"), atol=2e-3
    )
    assert [int(store_facts(store, name).valid_rows.sum()) for name in "1234"] == [46, 47, 48, 49]


class Dying(SerialExecutor):
    """Ends after one unit, as a killed process does: nothing is tidied up."""

    def map(self, stage, ledger, units, board):
        yield from itertools.islice(super().map(stage, ledger, units, board), 1)
        raise KeyboardInterrupt


def test_killed_while_rows_are_filled(pictures, folder, tmp_path, teacher):
    shards = shard(folder, tmp_path / "out", order="source")  # the two lie in two shards
    store = cache(shards, teacher, tmp_path / "s.zarr")
    now = mend(pictures, folder, tmp_path / "out", CUT, EMPTY)
    assert len({row_of(now, path) // SHARD for path in (CUT, EMPTY)}) == 2
    whole = Location.of(str(shutil.copytree(str(store), tmp_path / "whole.zarr")))
    fill(now, whole, teacher)
    named = store_teacher(store, StoreTeacherSettings(model=teacher.model))
    step = next(fill_mended(now.location, named))
    with pytest.raises(KeyboardInterrupt):
        run_stage(step.stage, step.store, Dying(), progress=False)
    assert read_generations(store).finished == ["1"]
    assert int(store_facts(store).valid_rows.sum()) == 46
    with TargetStream(now, str(store), image_size=32, batch_size=4, drop_last=False, targets=("embedding",)) as stream:
        assert len(list(stream)) == 12
    assert fill(now, store, teacher) == ["generation 2: 2 mended images"]
    assert files(store) == files(whole)


def test_a_store_that_does_not_say_where_its_teacher_is(folder, tmp_path, teacher):
    store = cache(shard(folder, tmp_path / "out"), teacher, tmp_path / "s.zarr")
    with pytest.raises(InputError) as caught:
        store_teacher(store, StoreTeacherSettings())
    assert "add --teacher-model local-dir:FOLDER" in str(caught.value)


def test_every_generation_is_told_of_and_opened(pictures, folder, tmp_path, teacher):
    shutil.copyfile(folder / CUT, folder / AGAIN)
    shards = shard(folder, tmp_path / "out", order="source")
    store = cache(shards, teacher, tmp_path / "s.zarr", 4)
    now = mend(pictures, folder, tmp_path / "out", CUT)
    assert row_of(now, CUT) // SHARD == row_of(now, AGAIN) // SHARD
    assert fill(now, store, teacher) == ["generation 2: 1 mended image"]
    (first, second) = folder_status(store)["stages"]
    assert first["generation"] == {"name": "1", "added": "", "state": "finished", "current": False}
    assert second["generation"] == {
        "name": "2",
        "added": "images that were mended, in 1 shard",
        "state": "finished",
        "current": True,
    }
    # What was mended since is no failed image any more, and the others are told of once.
    told = [[bad["path"] for kind in stage["unusable"] for bad in kind["images"]] for stage in (first, second)]
    assert told == [[EMPTY], [AGAIN]]
    for step in plan_growth(str(now.location), teacher, **arguments(store, 8)):
        with pytest.raises(KeyboardInterrupt):
            run_stage(step.stage, step.store, Dying(), progress=False)
        break
    facts = folder_status(store)
    third = facts["stages"][2]["generation"]
    assert third == {"name": "3", "added": "4 to 8 views", "state": "not finished", "current": False}
    text = " ".join(status_text(facts).split())
    assert "generation 1: what the store began with; finished units" in text
    assert "generation 2: images that were mended, in 1 shard; finished, what readers get units" in text
    assert "generation 3: 4 to 8 views; not finished units" in text
    assert "Next: run the same `teachonce cache --grow` command again" in text
    row = row_of(now, CUT)
    opened = {name: teachonce.open_store(str(store), generation=name) for name in ("1", "2")}
    assert [bool(one.valid(row)) for one in opened.values()] == [False, True]
    assert [one.generation for one in opened.values()] == ["1", "2"]
    assert opened["1"].generations == ("1", "2")
    assert teachonce.open_store(str(store)).generation == "2"
    assert teachonce.open_store(str(store), generation=1).generation == "1"
    with pytest.raises(InputError) as caught:
        teachonce.open_store(str(store), generation="3")
    assert caught.value.code == "generation-missing"
    for name, valid in (("1", 46), ("2", 47)):
        done = CliRunner().invoke(main, ["inspect", str(store), "--json", "--generation", name])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["coverage"]["valid"] == valid
