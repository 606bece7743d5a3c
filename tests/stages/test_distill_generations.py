"""`distill --generation`: students of a store that grew; of the first generation they are those of the store before it grew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.cache import plan_cache
from teachonce.stages.distill import plan_distill
from teachonce.stages.grow import plan_growth
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.vectors import plan_vectors
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import MismatchError

CPU = Compute(device="cpu", precision="fp32", threads=1)


def finish(stage: Any, place: Any) -> None:
    run_stage(stage, place, SerialExecutor(), progress=False)


@pytest.fixture(scope="module")
def stores(picture_shards, tiny_clip_teacher, tmp_path_factory) -> tuple[Path, Path]:
    """A store of two views of logits, and a copy that has grown to four."""
    top = tmp_path_factory.mktemp("stores")
    teacher, before, grown = TeacherConfig(model=f"local-dir:{tiny_clip_teacher}"), top / "before.zarr", top / "s.zarr"
    (top / "classes.txt").write_text("red fox\nBlue_Jay\nhouse-cat\n")
    settings = VectorsSettings(classes=str(top / "classes.txt"))
    vectors = plan_vectors(teacher, out=str(before), settings=settings, compute=CPU)
    finish(vectors, vectors.store)
    asked: dict[str, Any] = {"settings": CacheSettings(targets="logits", batch_size=16), "compute": CPU}
    views = [ViewSpec(kind="random_resized_crop", count=count, seed=3) for count in (2, 4)]
    stage = plan_cache(picture_shards.location, teacher, out=str(before), views=views[0], **asked)
    finish(stage, stage.store)
    shutil.copytree(before, grown)
    for step in plan_growth(picture_shards.location, teacher, out=str(grown), views=views[1], **asked):
        finish(step.stage, step.store)
    return before, grown


@pytest.fixture
def distill(picture_shards, tiny_clip, tmp_path):
    """`distill(name, store, generation)`: the bundle's weights and config; the folder stays."""

    def run(name: str, store: Path, generation: str | None = None) -> tuple[bytes, dict[str, Any]]:
        stage = plan_distill(
            str(picture_shards.location),
            str(store),
            StudentConfig(model=f"local-dir:{tiny_clip}"),
            out=str(tmp_path / name),
            recipe="kd",
            options={"epochs": 4, "batch_size": 8},
            settings=DistillSettings(generation=generation),
            compute=CPU,
            show_progress=False,
        )
        finish(stage, stage.out)
        weights = (tmp_path / name / "model.safetensors").read_bytes()
        return weights, json.loads((tmp_path / name / "config.json").read_bytes())

    return run


def test_the_first_generation_gives_the_student_of_the_store_before(stores, distill):
    before, grown = stores
    old, first, current = distill("old", before), distill("first", grown, "1"), distill("current", grown)
    assert first == old  # weights, and the whole config
    assert "generation" not in first[1]["origin"]["store"]
    assert current[0] != old[0]
    assert current[1]["origin"]["store"]["generation"] == "2"
    assert current[1]["origin"]["store"]["fingerprint"] != old[1]["origin"]["store"]["fingerprint"]
    assert distill("second", grown, "2") == current


def test_a_run_goes_on_with_its_generation_and_with_no_other(stores, distill, tmp_path):
    _, grown = stores
    whole, config = distill("student", grown, "1")
    (tmp_path / "student/ledger/distill/receipts/student.json").unlink()
    (tmp_path / "student/model.safetensors").unlink()
    with pytest.raises(MismatchError) as caught:
        distill("student", grown, "2")
    assert caught.value.code == "output-other-settings"
    assert "field 'store'" in str(caught.value)
    assert not (tmp_path / "student/model.safetensors").exists()
    assert distill("student", grown) == (whole, config)  # it was begun on the first one, although that is not current
