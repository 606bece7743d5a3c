"""Class vectors beside their teacher: each way in which they can be others is named by its code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.inputs.classes import DEFAULT_TEMPLATES, read_templates
from teachonce.stages.models.compute import Compute
from teachonce.stages.pretrain import plan_pretrain
from teachonce.stages.pretraining.settings import PretrainSettings
from teachonce.stages.settings.few_shot import FewShotSettings
from teachonce.stages.teachers import TeacherConfig, load_teacher
from teachonce.stages.verifying.vectors_check import vectors_errors
from teachonce.storage_schemas.class_vectors import ClassVectors, write_class_vectors

CPU = Compute(device="cpu", precision="fp32", threads=1)
NAMES = ("cat", "dog_house", "eagle", "fox", "tulip")


@pytest.fixture(scope="module")
def plain(tiny_clip_teacher) -> Any:
    return load_teacher(TeacherConfig(model=f"local-dir:{tiny_clip_teacher}"))


@pytest.fixture(scope="module")
def prompted(tiny_clip_teacher, tmp_path_factory) -> Any:
    """A teacher that has learned prompts, by the real stage."""
    top = tmp_path_factory.mktemp("prompted")
    for index, name in enumerate(NAMES):
        (top / "images" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40, 36), (50 * index, 90 * i, 120)).save(top / "images" / name / f"{i}.png")
    stage = plan_pretrain(
        str(top / "images"),
        TeacherConfig(model=f"local-dir:{tiny_clip_teacher}"),
        out=str(top / "p"),
        few=FewShotSettings(shots=2),
        settings=PretrainSettings(epochs=3, batch_size=4, lr=0.1),
        compute=CPU,
        show_progress=False,
    )
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return load_teacher(TeacherConfig.of(f"teachonce:{top / 'p'}"))


def found(teacher: Any, vectors: ClassVectors, templates: Any = DEFAULT_TEMPLATES) -> list[Any]:
    """Every error of vectors that say that they are of these templates."""
    root = zarr.open_group(zarr.storage.MemoryStore(), mode="w", zarr_format=3)
    write_class_vectors(root, vectors, {"templates": list(templates)})
    with CPU.inference():
        return list(vectors_errors(teacher, vectors, root, Location.of("s.zarr")))


def own(teacher: Any, templates: Any = DEFAULT_TEMPLATES) -> ClassVectors:
    with CPU.inference():
        return teacher.class_vectors(NAMES, templates)


def codes(*about: Any) -> list[str]:
    return [error.code for error in found(*about)]


@pytest.mark.parametrize("templates", [DEFAULT_TEMPLATES, read_templates("simple-imagenet")])
def test_what_the_teacher_gives_is_right(plain, templates):
    assert codes(plain, own(plain, templates), templates) == []


def test_what_a_teacher_with_prompts_gives_is_right(prompted):
    assert codes(prompted, own(prompted, ()), ()) == []


def test_prompts_that_were_not_loaded_are_named(prompted):
    vectors = prompted.plain(NAMES)[0][1]
    (error,) = found(prompted, vectors, ())
    assert error.code == "prompts-not-loaded"
    assert error.what == "the prompts were not loaded before the class vectors were computed"


def test_other_templates_are_named(plain):
    names = read_templates("simple-imagenet")
    (error,) = found(plain, own(plain, names), DEFAULT_TEMPLATES)
    assert (error.code, error.fields["found"]) == ("vectors-other-templates", "simple-imagenet")
    (error,) = found(plain, own(plain), names)
    assert (error.code, error.fields["found"]) == ("vectors-other-templates", DEFAULT_TEMPLATES[0])


def test_permuted_vectors_are_named_with_the_first_class(plain):
    right = own(plain)
    (error,) = found(plain, replace(right, vectors_CD=right.vectors_CD[[0, 3, 2, 1, 4]]))
    assert error.code == "classes-in-another-order"
    assert (error.fields["expected"], error.fields["found"]) == ("the vector of dog_house", "that of fox")


def test_vectors_of_some_other_classes_are_named(plain):
    right = own(plain)
    with CPU.inference():
        other = plain.class_vectors(("a zebra at night",), DEFAULT_TEMPLATES).vectors_CD
    changed = np.concatenate([right.vectors_CD[:2], other, right.vectors_CD[3:]])
    (error,) = found(plain, replace(right, vectors_CD=changed))
    assert error.code == "classes-other"
    assert error.fields["where"].endswith("class 2, eagle")


def test_vectors_of_another_teacher_scale_and_width(plain):
    right = own(plain)
    noise = np.random.default_rng(0).normal(size=right.vectors_CD.shape)
    unit = (noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float32)
    assert codes(plain, replace(right, vectors_CD=unit)) == ["vectors-not-of-teacher"]
    assert codes(
        plain, replace(right, vectors_CD=unit[:, :7] / np.linalg.norm(unit[:, :7], axis=1, keepdims=True))
    ) == ["vectors-not-of-teacher"]
    assert codes(plain, replace(right, logit_scale=right.logit_scale * 1.5)) == ["logit-scale-other"]


def test_collapsed_vectors_are_named_alone(plain):
    right = own(plain)
    alike = np.repeat(right.vectors_CD[:1], len(NAMES), axis=0)
    assert codes(plain, replace(right, vectors_CD=alike)) == ["vectors-collapsed"]
