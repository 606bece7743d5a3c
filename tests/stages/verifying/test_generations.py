"""Stores that grew: no alarm, whatever was added and whichever generation is asked for; damage in any part of them is found."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.grow import plan_growth
from teachonce.stages.grow_vectors import plan_more_classes
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.settings.verify import VerifyTeacherSettings
from teachonce.stages.shard import plan_shard


def grow(pair: Any, teacher: Any, plant: Any, *, views: int = 2, **settings: Any) -> None:
    steps = plan_growth(
        str(pair.shards),
        teacher,
        out=str(pair.store),
        views=replace(plant.VIEWS, count=views),
        settings=CacheSettings(**{"targets": "both", "encoding": "fp32", "batch_size": 16, **settings}),
        compute=plant.CPU,
    )
    for step in steps:
        run_stage(step.stage, step.store, SerialExecutor(), progress=False)


@pytest.fixture(scope="module")
def grown(made, teacher, plant, tmp_path_factory) -> Any:
    """Two views, then four."""
    top = tmp_path_factory.mktemp("grown")
    pair = plant.Pair(made.shards, Path(shutil.copytree(made.store, top / "s.zarr")))
    grow(pair, teacher, plant, views=4)
    return pair


@pytest.fixture
def copy(grown, plant, tmp_path) -> Any:
    return plant.Pair(grown.shards, Path(shutil.copytree(grown.store, tmp_path / "s.zarr")))


@pytest.mark.parametrize("generation", [None, "1", "2"])
@pytest.mark.parametrize("level", ["quick", "full"])
def test_more_views_are_no_alarm(grown, teacher, generation, level):
    again = VerifyTeacherSettings(rows=8, model=teacher.model)
    assert grown.codes(**{level: True}, generation=generation, teacher=again) == []


def test_a_flipped_bit_is_found_in_either_generation(copy):
    old, new = copy.store / "logits/c/1/0/0", copy.store / "embedding/c/2/1/0"
    for chunk in (old, new):
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 4
        chunk.write_bytes(data)
    assert copy.codes() == ["file-bit-flipped"] * 2
    assert copy.codes(generation="1") == ["file-bit-flipped"]
    new.unlink()
    assert copy.codes(quick=True) == ["file-missing"]


def test_a_lost_receipt_of_a_generation_is_found(copy):
    (copy.store / "ledger/cache.2/receipts/000001.json").unlink()
    assert "shard-unfinished" in copy.codes()
    assert copy.codes(generation="1") == []


def test_a_repair_of_a_store_that_grew_is_refused_and_says_what_to_do(copy, teacher):
    copy.chunk("embedding", 1).unlink()
    words = ["verify", str(copy.shards), str(copy.store), "--repair", "--teacher-model", teacher.model]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert "a store that grew is repaired by hand" in result.stderr
    assert "000001.json" in result.stderr


def test_a_generation_that_there_is_not_is_refused(grown):
    result = CliRunner().invoke(main, ["verify", str(grown.shards), str(grown.store), "--generation", "7"])
    assert result.exit_code == 1
    assert "7" in result.stderr


def test_more_classes_are_no_alarm(picture_shards, teacher, plant, tmp_path):
    store = tmp_path / "s.zarr"
    names = tmp_path / "classes.txt"
    names.write_text("red fox\nBlue_Jay\nhouse-cat\n")
    plant.make_store(picture_shards, store, teacher, classes=str(names))
    pair = plant.Pair(picture_shards.location.path, store)
    names.write_text("red fox\nBlue_Jay\nhouse-cat\nplane\n")

    for step in plan_more_classes(
        teacher, out=str(store), settings=VectorsSettings(classes=str(names)), compute=plant.CPU
    ):
        run_stage(step.stage, step.store, SerialExecutor(), progress=False)
    again = VerifyTeacherSettings(rows=8, model=teacher.model)
    for generation in (None, "1"):
        assert pair.codes(full=True, generation=generation, teacher=again) == []


def test_more_images_are_no_alarm_on_either_side(pictures, teacher, plant, tmp_path):
    some = tmp_path / "some"
    for path in sorted(pictures.rglob("*.*"))[:30]:
        (some / path.relative_to(pictures)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, some / path.relative_to(pictures))

    def shard(*, append: bool) -> ShardSet:
        settings = ShardSettings(append=append, shard_size=13, name="pictures", order="source")
        stage = plan_shard([str(some)], out=str(tmp_path / "shards"), settings=settings)
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
        return ShardSet.open(str(tmp_path / "shards"))

    pair = plant.Pair(tmp_path / "shards", plant.make_store(shard(append=False), tmp_path / "s.zarr", teacher))
    assert pair.codes() == []
    shutil.copytree(pictures, some, dirs_exist_ok=True)
    shard(append=True)
    assert pair.codes() == []  # the store knows the shards as they were
    grow(pair, teacher, plant)
    again = VerifyTeacherSettings(rows=12, model=teacher.model)
    assert pair.codes(full=True, teacher=again) == []
    assert pair.codes(generation="1") == []
    last = max(int(f.name) for f in (pair.store / "embedding/c").iterdir())
    chunk = pair.chunk("embedding", last)
    chunk.write_bytes(chunk.read_bytes()[:-3])
    assert pair.codes() == ["file-cut"]
