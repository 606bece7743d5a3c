"""PromptKD students' checkpoints as bundles, against a small model of the authors' names and arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.evaluate import evaluate
from teachonce.stages.import_checkpoint import plan_import
from teachonce.stages.models.compute import Compute
from teachonce.stages.published.report import contents_text
from teachonce.stages.settings.import_checkpoint import ImportSettings
from teachonce.stages.students.bundle import load_student
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.vectors import plan_vectors
from teachonce.storage_schemas.class_vectors import ClassVectors, write_class_vectors
from teachonce.storage_schemas.errors import IncompleteError, MismatchError, TeachonceError
from teachonce.storage_schemas.target_store import open_root

NAMES = ("red fox", "Blue_Jay", "house-cat", "newt", "yak")
COMPUTE = Compute(device="cpu", precision="fp32", threads=1)


@pytest.fixture(scope="module")
def vectors() -> ClassVectors:
    vectors_CD = np.random.default_rng(8).normal(size=(len(NAMES), 24)).astype(np.float32)
    vectors_CD /= np.linalg.norm(vectors_CD, axis=1, keepdims=True)
    return ClassVectors(
        names=NAMES,
        vectors_CD=vectors_CD,
        bias_C=None,
        logit_scale=100.0,
        normalized=True,
        base_C=np.array([True, True, True, False, False]),
    )


@pytest.fixture(scope="module")
def store(vectors, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("store") / "v.zarr")
    write_class_vectors(open_root(folder, mode="a"), vectors, {"teacher": {"model": "T"}, "templates": []})
    return folder


@pytest.fixture
def make_student(authors):
    """The authors' student of a tiny model, computing in fp32 with what is in the file, and its state as they save it."""

    def make(tiny, **options):
        with torch.random.fork_rng():
            torch.manual_seed(6)
            model = authors.Student(tiny.cfg, tiny.state, 24, **options)
        state = authors.halved(model.state_dict())
        model.load_state_dict({n: v.float() if v.is_floating_point() else v for n, v in state.items()})
        return model, state

    return make


def bring(file: Path, tiny, store: str, out: Path, **options):
    stage = plan_import(str(file), out=str(out), settings=ImportSettings(student=tiny.name, vectors=store, **options))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return stage


@pytest.mark.parametrize("changes", [{}, {"quick_gelu": False}])
@pytest.mark.parametrize("vision", [(4, 2), (2, 3), (4, 1), (0, 0)])
def test_logits_are_those_of_the_authors_model(
    make_tiny, make_student, authors, vectors, store, images, normalized, tmp_path, changes, vision
) -> None:
    tiny = make_tiny(**changes)
    model, state = make_student(tiny, vision=vision)
    file = tmp_path / "model-best.pth.tar"
    torch.save(authors.training_state(state), file)
    found = bring(file, tiny, store, tmp_path / "b").found
    loaded = load_student(str(tmp_path / "b"))
    with torch.no_grad():
        logits_NC = loaded.vectors.logits(loaded.student(images).numpy())
    expected_NC = model.logits(normalized, torch.tensor(vectors.vectors_CD))
    assert np.allclose(logits_NC, expected_NC, atol=2e-4, rtol=1e-5)  # logits go to 20: 1e-5 of that
    assert loaded.vectors.base_names == NAMES[:3]
    norm = loaded.student.projector[1]
    assert torch.equal(norm.running_var, state["VPT_image_trans.conv1.1.running_var"])
    assert int(norm.num_batches_tracked) == 77
    length, depth = vision
    assert found.prompts == ({"vision": (depth, length, 32)} if length else {})
    assert (found.epoch, found.projector, found.taken, found.left_out) == (20, 9, "checkpoint", {})
    origin = json.loads((tmp_path / "b" / "config.json").read_bytes())["origin"]
    assert origin["checkpoint"]["name"] == "model-best.pth.tar"
    assert str(tmp_path) not in json.dumps(origin)


def test_evaluate_takes_the_bundle(tiny, make_student, store, pictures, tmp_path) -> None:
    _, state = make_student(tiny)
    torch.save(state, tmp_path / "m.pth")
    bring(tmp_path / "m.pth", tiny, store, tmp_path / "b")
    result = evaluate(str(tmp_path / "b"), str(pictures), compute=COMPUTE)
    assert result.accuracy.top1.total == 46
    assert result.accuracy.base.total == 46


def test_a_teacher_and_its_student_together(
    tiny, make_tiny, make_teacher, authors, make_student, classes, images, tmp_path
) -> None:
    """The store that `vectors` writes for an imported teacher is what an imported student needs."""
    large = make_tiny(2, embed_dim=24)
    model, state = make_teacher(large)
    torch.save(state, tmp_path / "teacher.pth")
    stage = plan_import(
        str(tmp_path / "teacher.pth"),
        out=str(tmp_path / "t"),
        settings=ImportSettings(teacher=large.name, classes=classes),
    )
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    named = plan_vectors(
        TeacherConfig.of(f"teachonce:{tmp_path / 't'}"),
        out=str(tmp_path / "v.zarr"),
        compute=COMPUTE,
    )
    run_stage(named, named.store, SerialExecutor(), progress=False)
    _, state = make_student(tiny)
    torch.save(state, tmp_path / "student.pth")
    bring(tmp_path / "student.pth", tiny, str(tmp_path / "v.zarr"), tmp_path / "b")
    loaded = load_student(str(tmp_path / "b"))
    assert np.allclose(loaded.vectors.vectors_CD, model.text_features(NAMES), atol=1e-5)
    assert loaded.vectors.logit_scale == pytest.approx(20)


PARTS = "VPT_image_trans.conv1"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda s: s.update({"prompt_learner.token_prefix": torch.ones(1)}),
            "an unknown key in the checkpoint: m.pth: expected keys of a PromptKD student, found "
            "prompt_learner.token_prefix (1 unknown). Next: give a checkpoint of PromptSRC's or PromptKD's own trainer",
        ),
        (
            lambda s: s.update({f"{PARTS}.4.weight": torch.ones(1)}),
            f"an unknown key in the checkpoint: m.pth: expected keys of a PromptKD student, found {PARTS}.4.weight (1 "
            "unknown). Next: give a checkpoint of PromptSRC's or PromptKD's own trainer",
        ),
        (
            lambda s: s.pop(f"{PARTS}.1.running_mean"),
            f"the checkpoint lacks a weight: m.pth: expected {PARTS}.1.running_mean, found none (1 missing, 0 unknown). "
            "Next: name the model that it was trained with, or give a whole file",
        ),
        (
            lambda s: s.pop("logit_scale"),
            "the checkpoint lacks a weight: m.pth: expected logit_scale, found none (1 missing, 0 unknown). "
            "Next: name the model that it was trained with, or give a whole file",
        ),
        (
            lambda s: s.update({f"{PARTS}.0.weight": torch.ones(24, 12, 1, 1)}),
            f"a weight of the checkpoint has another shape: m.pth: expected {PARTS}.0.weight (24, 16, 1, 1), found (24, 12, "
            "1, 1). Next: name the model that it was trained with",
        ),
        (
            lambda s: s.update({"prompt_learner.ctx": torch.ones(4, 16)}),
            "not a checkpoint that can be imported: m.pth: expected prompt_learner.ctx (a PromptSRC teacher) or "
            f"{PARTS}.… (a PromptKD student), found both. Next: give a checkpoint of PromptSRC's or PromptKD's own trainer",
        ),
    ],
)
def test_every_key_is_accounted_for(change, line, tiny, make_student, store, tmp_path) -> None:
    _, state = make_student(tiny)
    change(state)
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(TeachonceError) as error:
        bring(tmp_path / "m.pth", tiny, store, tmp_path / "b")
    assert str(error.value) == line
    assert not (tmp_path / "b").exists()


def test_another_backbone_other_vectors_no_weights(tiny, make_tiny, make_student, vectors, store, tmp_path) -> None:
    _, state = make_student(tiny)
    torch.save(state, tmp_path / "m.pth")

    def line(kind, student, vectors, **options) -> str:
        with pytest.raises(kind) as error:
            bring(tmp_path / "m.pth", student, vectors, tmp_path / "b", **options)
        return str(error.value)

    other = line(TeachonceError, make_tiny(9), store)
    assert other.startswith("the checkpoint's frozen weights are another model's: m.pth: image_encoder.")
    narrow = str(tmp_path / "narrow.zarr")
    few = ClassVectors(names=NAMES, vectors_CD=vectors.vectors_CD[:, :6], bias_C=None, logit_scale=1.0, normalized=True)
    write_class_vectors(open_root(narrow, mode="a"), few, {"teacher": {}})
    assert line(MismatchError, tiny, narrow) == (
        f"these class vectors are not of the student's teacher: {narrow}: expected text features of 24 channels (the "
        "student), found text features of 6 channels (the store). Next: teachonce import its teacher, then teachonce vectors --teacher teachonce:FOLDER"
    )
    empty = str(tmp_path / "empty.zarr")
    open_root(empty, mode="a")
    assert line(IncompleteError, tiny, empty).startswith("the store has no class vectors")
    assert line(TeachonceError, tiny, store, student_pretrained="random") == (
        f"a student's weights are compared with those that it was trained from: {tiny.name}: expected --student-pretrained "
        "TAG or PATH, found random. Next: add --student-pretrained openai, as the authors have it"
    )
    stage = plan_import(
        str(tmp_path / "m.pth"),
        out=str(tmp_path / "b"),
        settings=ImportSettings(student=tiny.name, vectors=store),
    )
    assert contents_text(stage.found).splitlines() == [
        "m.pth",
        "  kind            PromptKD student",
        "  vision prompts  2 layers × 4 tokens × 32 channels",
        "  frozen weights  44 tensors; the checkpoint's are used",
        *[row for row in contents_text(stage.found).splitlines() if "off the backbone's by" in row],
        "  projector       9 tensors",
    ]
