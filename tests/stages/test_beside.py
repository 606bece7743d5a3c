"""Two teachers' stores, one beside the other: each is whole by itself, and the first knows the second."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import pytest
import teachonce
import xarray
import zarr
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.cache import plan_cache
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.models.compute import Compute
from teachonce.stages.pairs.beside import place_beside, teachers_beside
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.status import folder_status
from teachonce.stages.teachers import TeacherConfig
from teachonce.storage_schemas.errors import InputError, MismatchError

FP32 = Compute(device="cpu", precision="fp32", threads=1)
SECOND = TeacherConfig(model="timm:test_vit", pretrained="random")


class Dying(SerialExecutor):
    """Ends after one unit, as a killed process does: nothing is tidied up."""

    def map(self, stage, ledger, units, board):
        yield from itertools.islice(super().map(stage, ledger, units, board), 1)
        raise KeyboardInterrupt


def cache(shards, teacher, out, executor=None) -> Location:
    settings = CacheSettings(targets="embedding", batch_size=16)
    stage = plan_cache(str(shards.location), teacher, out=str(out), settings=settings, compute=FP32)
    run_stage(stage, stage.store, executor or SerialExecutor(), progress=False)
    return stage.store


def files(store) -> dict[str, bytes]:
    root = Path(str(store))
    found = {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if "timings" not in name}


def test_a_second_teacher_lies_beside_the_first(picture_shards, tiny_clip_teacher, tmp_path):
    first = cache(picture_shards, TeacherConfig(model=f"local-dir:{tiny_clip_teacher}"), tmp_path / "s.zarr")
    before = files(first)
    place = place_beside(first, "vit")
    assert str(place) == f"{first}/teachers/vit"
    with pytest.raises(KeyboardInterrupt):
        cache(picture_shards, SECOND, place, Dying())
    assert folder_status(first)["state"] == "units left"
    second = cache(picture_shards, SECOND, place_beside(first, "vit"))
    assert files(second) == files(cache(picture_shards, SECOND, tmp_path / "alone.zarr"))
    assert {name: data for name, data in files(first).items() if not name.startswith("teachers/")} == before
    assert {name: str(found) for name, found in teachers_beside(first).items()} == {"vit": str(second)}
    assert dict(teachonce.open_store(str(first)).teachers) == {"vit": str(second)}
    assert teachonce.open_store(str(second)).teacher["model"] != teachonce.open_store(str(first)).teacher["model"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", zarr.errors.ZarrUserWarning)
        root = zarr.open_group(str(first), mode="r")
        assert {"ledger", "teachers"} <= set(root.group_keys())
        assert root["teachers/vit/embedding"].shape[0] == 48
    assert xarray.open_zarr(str(first), consolidated=False)["embedding"].sizes["sample"] == 48
    facts = folder_status(first)
    assert facts["state"] == "complete"
    assert [stage["folder"] for stage in facts["stages"]] == [str(first), str(second)]
    for store in (first, second):
        stream = TargetStream(picture_shards, str(store), image_size=32, batch_size=8, targets=("embedding",))
        assert stream.num_samples == 46
        stream.close()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b"])
def test_names_that_are_no_folders(name, tmp_path):
    with pytest.raises(InputError) as caught:
        place_beside(tmp_path, name)
    assert caught.value.code == "beside-name"


def test_there_must_be_a_first_store(tmp_path):
    with pytest.raises(InputError) as caught:
        place_beside(tmp_path / "s.zarr", "vit")
    assert str(caught.value).startswith(
        f"there is no store that another teacher's could lie beside: {tmp_path / 's.zarr'}: expected a target store, found nothing"
    )


def test_shards_of_another_corpus_are_refused(picture_shards, pictures, tiny_clip_teacher, tmp_path):
    first = cache(picture_shards, TeacherConfig(model=f"local-dir:{tiny_clip_teacher}"), tmp_path / "s.zarr")
    settings = ShardSettings(shard_size=13, name="others", order="source")
    stage = plan_shard([str(pictures)], out=str(tmp_path / "others"), settings=settings)
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    others = ShardSet.open(str(tmp_path / "others"))
    place = place_beside(first, "vit")
    with pytest.raises(MismatchError) as caught:
        cache(others, SECOND, place)
    expected, found = picture_shards.corpus.corpus_id, others.corpus.corpus_id
    assert caught.value.code == "beside-other-corpus"
    assert str(caught.value).startswith(
        f"these are not the shards of the store that this teacher's is to lie beside: {first}: field 'corpus_id': expected {expected} "
        f"(that store, made of {picture_shards.location}), found {found} ({others.location}). Next: "
    )
    assert not (tmp_path / "s.zarr/teachers/vit/zarr.json").exists()


def test_both_stores_are_read_and_class_vectors_come_beside_too(picture_shards, tiny_clip_teacher, tmp_path):
    model = f"local-dir:{tiny_clip_teacher}"
    store, classes = tmp_path / "s.zarr", tmp_path / "classes.txt"
    classes.write_text("red fox\nBlue_Jay\nhouse-cat\n")

    def run(*words: object) -> None:
        done = CliRunner().invoke(main, [str(word) for word in (*words, "--out", store, "--executor", "serial")])
        assert done.exit_code == 0, done.output

    cached = ("cache", picture_shards.location, "--threads", 1)
    run(*cached, "--teacher", "timm:test_vit", "--teacher-pretrained", "random", "--targets", "embedding")
    run("vectors", "--teacher", model, "--classes", classes, "--beside", "clip")
    run(*cached, "--teacher", model, "--targets", "both", "--views", 2, "--beside", "clip")
    with teachonce.open_store(str(store)) as first, teachonce.open_store(first.teachers["clip"]) as second:
        assert (first.num_views, second.num_views) == (1, 2)
        assert (tuple(first.class_names), second.class_names) == ((), ("red fox", "Blue_Jay", "house-cat"))
        assert (first.keys() == second.keys()).all()
        assert second.logits(0, view=None).shape == (2, 3)
