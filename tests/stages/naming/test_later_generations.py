"""Later generations of labels: a finished student embeds the images, and generation 0's clusters vote again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.labels import LabelsStage, plan_labels
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.teacher_config import TeacherConfig
from teachonce.stages.naming.votes import rounds
from teachonce.stages.pairs.label_store import OpenLabels
from teachonce.stages.settings.labels import LabelsSettings
from teachonce.stages.students.bundle import load_student
from teachonce.stages.teachers import load_teacher
from teachonce.stages.teachers.bundle import BundleTeacher
from teachonce.storage_schemas.errors import IncompleteError, InputError, MismatchError

CPU = Compute(device="cpu", precision="fp32", threads=1)


def plan(store: Any, out: Path, **settings: Any) -> LabelsStage:
    return plan_labels(store.location, out=str(out), settings=LabelsSettings(**settings), compute=CPU)


def run(stage: LabelsStage) -> OpenLabels:
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return OpenLabels.of(stage.out, stage.number)


@pytest.fixture
def labels(centre_store, tmp_path) -> Path:
    run(plan(centre_store, tmp_path / "labels", classes=6, starts=2))
    return tmp_path / "labels"


@pytest.fixture(scope="module")
def later_store(picture_shards, vocabulary, make_centre_store, tmp_path_factory) -> Any:
    """What a student might have made of the images."""
    rows = picture_shards.corpus.num_rows
    embedding = np.random.default_rng(8).normal(size=(rows, 5)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return make_centre_store(
        picture_shards, tmp_path_factory.mktemp("later") / "s.zarr", embedding, vocabulary, weights="later"
    )


def test_generation_0s_clusters_vote_by_what_the_student_sees(labels, later_store, vocabulary) -> None:
    first = OpenLabels.of(Location.of(labels), 0)
    found = run(plan(later_store, labels, append=True))
    assert found.generation == 1
    valid = later_store.valid
    embedding = later_store.targets["embedding"][valid, 0]
    expected = rounds([embedding], vocabulary, first.all_rows()[valid].astype(np.int64))
    assert found.all_rows()[valid].tolist() == expected.labels_N.tolist()
    assert found.all_rows().tolist() != first.all_rows().tolist()
    assert OpenLabels.of(Location.of(labels)).generation == 1  # the last one is what is read
    assert OpenLabels.of(Location.of(labels), 0).digest == first.digest


def test_an_image_without_a_label_gets_one_and_votes_from_then_on(vocabulary) -> None:
    """Such as one that could not be used when generation 0 was made."""
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(40, 5)).astype(np.float32)
    partition = rng.integers(0, 5, 40)
    partition[7] = -1
    first = rounds([embedding], vocabulary, partition, count=1)
    without = np.delete(np.arange(40), 7)
    assert (
        first.shares_CV.tolist()
        == rounds([embedding[without]], vocabulary, partition[without], count=1).shares_CV.tolist()
    )
    assert first.labels_N[7] >= 0
    whole = rounds([embedding], vocabulary, partition, count=2)
    again = rounds([embedding], vocabulary, first.labels_N, count=1)
    assert whole.labels_N.tolist() == again.labels_N.tolist()
    assert (whole.voters_N >= 0).all()


def test_the_same_command_goes_on_with_its_generation(labels, later_store, centre_store) -> None:
    digest = run(plan(later_store, labels, append=True)).digest
    assert plan(later_store, labels, append=True).number == 1
    assert run(plan(centre_store, labels, append=True)).generation == 2  # another store is another generation
    (labels / "ledger/labels.1/receipts/labels.json").unlink()
    (labels / "generation_1/c/0").write_bytes(b"half")
    assert OpenLabels.of(Location.of(labels)).generation == 2
    with pytest.raises(IncompleteError) as error:
        OpenLabels.of(Location.of(labels), 1)
    assert (
        str(error.value)
        == f"these labels are not finished: {labels}, generation 1. Next: run the same `teachonce labels` command again"
    )
    with pytest.raises(IncompleteError, match="labels has not finished: .*: found 0 of 1 unit"):
        plan(centre_store, labels, append=True)
    assert run(plan(later_store, labels, append=True)).digest == digest


def test_another_corpus_or_image_is_refused(
    labels, pictures, make_shards, make_centre_store, vocabulary, tmp_path
) -> None:
    shards = make_shards(pictures, tmp_path / "shards", shard_size=13, name="others")
    embedding = np.ones((shards.corpus.num_rows, 5), np.float32)
    other = make_centre_store(shards, tmp_path / "s", embedding, vocabulary)
    with pytest.raises(
        MismatchError, match="the labels are of another corpus: .*: field 'corpus_id': expected .* .the store."
    ):
        plan(other, labels, append=True)
    with pytest.raises(InputError, match="no labels here"):
        plan(other, tmp_path / "none", append=True)


def test_the_commands_with_a_finished_student(centre_store, tiny_clip, labels, tmp_path) -> None:
    """distill, cache by the bundle, append, and distill from the bundle with the new labels."""
    shards, store = str(centre_store.shards.location), str(centre_store.location)
    small = ["--recipe", "s3a", "--batch-size", "16", "--epochs", "1", "--threads", "1", "--decode-workers", "0"]

    def teachonce(*words: object) -> Any:
        done = CliRunner().invoke(main, list(map(str, words)))
        assert done.exit_code == 0, done.output
        return done

    model = f"local-dir:{tiny_clip}"
    teachonce("distill", shards, store, "--student", model, *small, "--labels", labels, "--out", tmp_path / "a")
    where = ["--executor", "serial", "--threads", "1", "--decode-workers", "0"]
    teacher = ["--teacher", f"bundle:{tmp_path / 'a'}", "--views", "center", "--targets", "embedding"]
    teachonce("cache", shards, *teacher, *where, "--out", tmp_path / "a.zarr")
    told = teachonce("labels", tmp_path / "a.zarr", "--vectors", store, "--append", "--out", labels, "--json")
    assert json.loads(told.stdout)["generation"] == 1
    again = ["--student", model, "--student-pretrained", tmp_path / "a", *small, "--labels", f"{labels}@1"]
    assert "generation 1" in teachonce("distill", shards, store, *again, "--out", tmp_path / "b").stderr
    student = load_student(tmp_path / "b")
    assert student.config.origin["sources"] == [{"labels": OpenLabels.of(Location.of(labels), 1).digest}]


# --- a finished student as a teacher


@pytest.fixture(scope="module")
def bundle(centre_store, tiny_clip, tmp_path_factory) -> Path:
    from teachonce.stages.distill import plan_distill
    from teachonce.stages.models.student_config import StudentConfig

    stage = plan_distill(
        str(centre_store.shards.location),
        str(centre_store.location),
        StudentConfig(model=f"local-dir:{tiny_clip}"),
        out=str(tmp_path_factory.mktemp("bundle") / "b"),
        recipe="kd",
        options={"epochs": 1, "batch_size": 16},
        compute=CPU,
        show_progress=False,
    )
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return stage.out.path


def test_it_gives_the_students_embeddings_and_classes(bundle, vocabulary) -> None:
    teacher = load_teacher(TeacherConfig.of(f"bundle:{bundle}"))
    assert isinstance(teacher, BundleTeacher)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    student = load_student(bundle)
    with torch.no_grad():
        assert teacher.outputs(images, ["embedding"])["embedding"].equal(student.student(images))
    assert teacher.class_names(None) == teacher.class_names(vocabulary.names) == vocabulary.names
    assert teacher.class_vectors((), ()).digest == student.vectors.digest == vocabulary.digest
    assert teacher.spec.preprocess == student.preprocess
    assert teacher.spec.normalized
    assert (teacher.spec.family, teacher.spec.model) == ("bundle", "bundle:b")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"pretrained": "openai"}, "openai"),
        ({"size": 64}, "another preprocessing"),
        ({"mean": (0.0, 0.0, 0.0)}, "another preprocessing"),
    ],
)
def test_it_takes_nothing_beside_the_bundle(bundle, options, found) -> None:
    with pytest.raises(InputError) as error:
        load_teacher(TeacherConfig.of(f"bundle:{bundle}", **options))
    assert str(error.value) == (
        f"a finished student has its own weights and preprocessing: --teacher bundle:{bundle}: expected neither --teacher-pretrained nor "
        f"another size or preprocessing, found {found}. Next: leave them out"
    )
    with pytest.raises(InputError) as other:
        load_teacher(TeacherConfig.of(f"bundle:{bundle}")).class_names(("a", "b"))
    assert str(other.value) == (
        "a finished student has the classes that it was trained with: bundle:b: expected its 25 classes, found a list of 2. "
        "Next: leave out --classes"
    )


def test_what_is_no_bundle(tmp_path) -> None:
    with pytest.raises(InputError, match="no student bundle here"):
        load_teacher(TeacherConfig.of(f"bundle:{tmp_path}"))
