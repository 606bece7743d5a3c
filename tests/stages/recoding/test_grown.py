"""`teachonce recode` of stores that grew: each generation, against what readers of it get."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.cache import plan_cache
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.grow import plan_growth
from teachonce.stages.grow_vectors import plan_more_classes
from teachonce.stages.inspect import inspect_store
from teachonce.stages.measures.stored import Stored
from teachonce.stages.models.compute import Compute
from teachonce.stages.pairs.store import open_store, read_description, read_vectors, store_facts
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.recode import plan_recode
from teachonce.stages.reports.inspect_text import described, store_text
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.recode import RecodeSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.vectors import plan_vectors
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import InputError
from teachonce.storage_schemas.target_store import read_block

FP32 = Compute(device="cpu", precision="fp32", threads=1)


def run(stage, out) -> None:
    run_stage(stage, Location.of(str(out)), SerialExecutor(), progress=False)


def classes(folder: Path, *names: str) -> VectorsSettings:
    (folder / "classes.txt").write_text("\n".join(names) + "\n")
    return VectorsSettings(classes=str(folder / "classes.txt"))


def shard(folder: Path, out: Path, *, append: bool = False) -> ShardSet:
    settings = ShardSettings(append=append, shard_size=13, name="pictures", order="source")
    run(plan_shard([str(folder)], out=str(out), settings=settings), out)
    return ShardSet.open(str(out))


def arguments(out: Path, views: int) -> dict:
    return {
        "out": str(out),
        "views": ViewSpec(kind="random_resized_crop", count=views, seed=3),
        "settings": CacheSettings(batch_size=32, targets="both"),
        "compute": FP32,
    }


@pytest.fixture(scope="module")
def grown(pictures, tiny_clip_teacher, tmp_path_factory) -> tuple[ShardSet, Path]:
    """(shards, a store of four generations): 30 images in 2 views and 3 classes, then 48 images, 4 views, 4 classes."""
    folder = tmp_path_factory.mktemp("grown")
    teacher = TeacherConfig(model=f"local-dir:{tiny_clip_teacher}")
    out, some = folder / "s.zarr", folder / "some"
    for path in sorted(pictures.rglob("*.*"))[:30]:
        target = some / path.relative_to(pictures)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shards = shard(some, folder / "shards")
    run(
        plan_vectors(teacher, out=str(out), settings=classes(folder, "red fox", "Blue_Jay", "house-cat"), compute=FP32),
        out,
    )
    run(plan_cache(str(shards.location), teacher, **arguments(out, 2)), out)
    shutil.copytree(pictures, some, dirs_exist_ok=True)
    shards = shard(some, folder / "shards", append=True)
    for step in plan_growth(str(shards.location), teacher, **arguments(out, 4)):
        run(step.stage, out)
    for step in plan_more_classes(teacher, out=str(out), settings=classes(folder, "zebra"), compute=FP32):
        run(step.stage, out)
    return shards, out


@pytest.mark.parametrize(
    ("generation", "images", "views", "names"), [("1", 30, 2, 3), ("2", 48, 2, 3), (None, 48, 4, 4)]
)
def test_each_generation_becomes_a_store_of_one(grown, tmp_path, generation, images, views, names):
    shards, store = grown
    old, new = Location.of(store), Location.of(tmp_path / "out.zarr")
    run(plan_recode(str(store), out=str(new), settings=RecodeSettings(generation=generation)), new)
    root, copy = open_store(old, generation), open_store(new)
    was, now = read_description(root, old), read_description(copy, new)
    assert (now.spec.num_samples, now.spec.num_views, now.spec.target("logits").shape) == (images, views, (names,))
    assert (now.spec.targets, now.growth, "growth" in now.fingerprint) == (was.spec.targets, None, False)
    for number in range(was.spec.num_shards):
        assert read_block(copy, now.spec, number).digest == read_block(root, was.spec, number).digest
    assert read_vectors(copy, new).digest == read_vectors(root, old).digest
    assert now.recoded["store"] == store_facts(old, generation).fingerprint
    stream = TargetStream(shards, str(new), image_size=32, batch_size=7)
    assert stream.num_samples == int(store_facts(old, generation).valid_rows.sum())
    assert len(list(stream)) == stream.num_samples // 7


def test_views_and_samples_of_a_grown_store(grown, tmp_path):
    _, store = grown
    old, new = Location.of(store), Location.of(tmp_path / "out.zarr")
    settings = RecodeSettings(views="3,0", only_shards=(1, 3), encoding="fp32", targets="embedding")
    run(plan_recode(str(store), out=str(new), settings=settings), new)
    root, copy = open_store(old), open_store(new)
    was, now = read_description(root, old).spec, read_description(copy, new).spec
    for number in range(was.num_shards):
        before, after = read_block(root, was, number), read_block(copy, now, number)
        kept = before.valid & (number in (1, 3))
        np.testing.assert_array_equal(after.valid, kept)
        np.testing.assert_array_equal(after.targets["embedding"][kept], before.targets["embedding"][:, [3, 0]][kept])
    assert int(store_facts(new).valid_rows.sum()) > 0
    facts = inspect_store(Stored.open(new))
    known = f"{old}, fingerprint {store_facts(old).fingerprint}: views 3, 0; 26 chosen rows"
    assert dict(described(facts))["made from"] == known
    assert "made from" in store_text(facts)


@pytest.mark.parametrize(("generation", "images", "views"), [("1", 30, 2), (None, 48, 4)])
def test_files_of_a_generation(grown, tmp_path, generation, images, views):
    _, store = grown
    settings = RecodeSettings(generation=generation, to="parquet")
    run(plan_recode(str(store), out=str(tmp_path / "out"), settings=settings), tmp_path / "out")
    table = pyarrow.dataset.dataset(tmp_path / "out" / "data").to_table()
    usable = int(store_facts(Location.of(store), generation).valid_rows.sum())
    assert (table.num_rows, set(table["view"].to_pylist())) == (usable * views, set(range(views)))
    assert max(table["row"].to_pylist()) >= images - 2
    assert None not in table["path"].to_pylist()


def test_no_such_generation(grown, tmp_path):
    _, store = grown
    with pytest.raises(InputError, match="the store has no such generation"):
        plan_recode(str(store), out=str(tmp_path / "out.zarr"), settings=RecodeSettings(generation="9"))
    assert not (tmp_path / "out.zarr").exists()
