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
from teachonce.pipeline.storage import Location
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.grow import plan_growth
from teachonce.stages.grow_vectors import plan_more_classes
from teachonce.stages.pairs.store import read_generations
from teachonce.stages.recode import plan_recode
from teachonce.stages.retry_failed import plan_retry
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.recode import RecodeSettings
from teachonce.stages.settings.retry_failed import RetrySettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.settings.verify import VerifySettings, VerifyTeacherSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.verify import plan_verify


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
    (unfinished,) = [finding.error for finding in copy.findings() if finding.code == "shard-unfinished"]
    assert str(unfinished).endswith("/000001.json. Next: run the same `teachonce cache --grow` command again")
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


def test_a_recoded_store_is_recoded_again_and_not_cached(made, teacher, plant, tmp_path):
    store = tmp_path / "r.zarr"
    stage = plan_recode(str(made.store), out=str(store), settings=RecodeSettings(encoding="int8"))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    pair = plant.Pair(made.shards, store)
    pair.chunk("embedding", 1).unlink()
    words = ["verify", str(made.shards), str(store), "--repair", "--teacher-model", teacher.model]
    result = CliRunner().invoke(main, words)
    receipt = store / "ledger/cache/receipts/000001.json"
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"Error: a store that was recoded is repaired by recoding: {store} [repair-recoded-store]. Next: restore it from a copy; or "
        f"mv {receipt} {receipt}.old, then run the same `teachonce recode` command again"
    )
    receipt.rename(f"{receipt}.lost")
    assert sorted(str(finding.error) for finding in pair.findings(quick=True)) == [
        f"a shard has no receipt: it is not finished: {receipt}. Next: run the same `teachonce recode` command again",
        f"recode has not finished: {store}: found 3 of 4 units. Next: run the same `teachonce recode` command again",
    ]


@pytest.mark.parametrize(("encoding", "compared"), [("fp16", True), ("pq:2", False)])
def test_logits_formed_of_embeddings_that_had_lost_something_are_no_alarm(
    picture_shards, teacher, plant, tmp_path, encoding, compared
):
    store, anew = tmp_path / "s.zarr", tmp_path / "anew.zarr"
    plant.make_store(picture_shards, store, teacher, targets="embedding", encoding=encoding)
    pair = plant.Pair(picture_shards.location.path, store)
    grow(pair, teacher, plant, targets="logits", encoding="logits=fp16")
    stage = plan_recode(str(store), out=str(anew), settings=RecodeSettings(targets="logits"))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    again = VerifyTeacherSettings(rows=40, model=teacher.model)
    for place in (store, anew):
        report = plant.Pair(pair.shards, place).report(full=True, teacher=again)
        assert report.in_order == []
        assert ("logits" in report.asked.to_json()["targets"]) == compared
        planned, _ = plan_verify(str(pair.shards), str(place), settings=VerifySettings(full=True), teacher=again)
        told = "the store's logits had been drawn, or lost too much, before: not compared with the teacher"
        assert planned is not None
        assert (told in planned.notes) == (not compared)


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


@pytest.fixture(scope="module", params=["fp32", "logits=sampled:20,embedding=int8"])
def much_grown(request, pictures, teacher, plant, tmp_path_factory) -> Any:
    """Two views; then two mended images, more images, four views, another target, and more classes."""
    top = tmp_path_factory.mktemp("much")
    photos = top / "photos"
    shutil.copytree(pictures, photos)
    later = sorted(photos.rglob("*.png"))[:6]
    for number, path in enumerate(later):
        path.rename(top / f"later{number}.png")

    def shard(*, append: bool) -> None:
        settings = ShardSettings(append=append, shard_size=13, name="pictures")
        stage = plan_shard([str(photos)], out=str(top / "shards"), settings=settings)
        run_stage(stage, stage.out, SerialExecutor(), progress=False)

    shard(append=False)
    options = {"encoding": request.param}
    (top / "classes.txt").write_text("red fox\nBlue_Jay\nhouse-cat\n")
    store = plant.make_store(
        ShardSet.open(str(top / "shards")), top / "s.zarr", teacher, classes=str(top / "classes.txt"), **options
    )
    pair = plant.Pair(top / "shards", store)
    for number, path in enumerate(("Blue_Jay/20b.jpg", "red fox/07b.jpg")):
        shutil.copyfile(sorted((pictures / "house-cat").glob("*.jpg"))[number], photos / path)
    mend = plan_retry(str(pair.shards), settings=RetrySettings(source=(str(photos),))).stage
    assert mend is not None
    run_stage(mend, mend.out, SerialExecutor(), progress=False)
    for number, path in enumerate(later):
        (top / f"later{number}.png").rename(path)
    shard(append=True)
    grow(pair, teacher, plant, views=4, targets="tokens", encoding="tokens=int8")
    (top / "more.txt").write_text("zebra\nant\n")
    settings = VectorsSettings(classes=str(top / "more.txt"))
    for step in plan_more_classes(teacher, out=str(store), settings=settings, compute=plant.CPU):
        run_stage(step.stage, step.store, SerialExecutor(), progress=False)
    return pair


def test_whatever_was_added_one_after_the_other_is_no_alarm(much_grown, teacher):
    generations = read_generations(Location.of(str(much_grown.store)))
    growths = [generations.described[name].growth for name in generations.finished[1:]]
    assert [one.what for one in growths if one] == ["mended", "images", "views", "targets", "classes"]
    again = VerifyTeacherSettings(rows=10, model=teacher.model)
    for name in generations.finished:
        assert much_grown.codes(quick=True, generation=name) == []
        assert much_grown.codes(full=True, generation=name, teacher=again) == []


@pytest.mark.parametrize("generation", ["2", "6"])
def test_a_recoded_generation_is_no_alarm(much_grown, teacher, plant, tmp_path, generation):
    asked = RecodeSettings(
        encoding="logits=sampled:30,embedding=fp16", generation=generation, targets="embedding,logits"
    )
    stage = plan_recode(str(much_grown.store), out=str(tmp_path / "r.zarr"), settings=asked)
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    pair = plant.Pair(much_grown.shards, tmp_path / "r.zarr")
    assert pair.codes(full=True, teacher=VerifyTeacherSettings(rows=10, model=teacher.model)) == []


def test_damage_in_a_chunk_of_mended_rows_is_found(much_grown, plant, tmp_path):
    pair = plant.Pair(much_grown.shards, Path(shutil.copytree(much_grown.store, tmp_path / "s.zarr")))
    (chunk, *_) = sorted(f for f in (pair.store / "generations/2/mended/embedding/c").rglob("*") if f.is_file())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    assert pair.codes() == ["file-bit-flipped"]
    assert pair.codes(generation="1") == []
