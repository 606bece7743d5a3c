"""Class lists from wherever they come: in order, and each class with a name of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.distill import plan_distill
from teachonce.stages.inputs.classes import classes_of, read_classes
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.pretrain import plan_pretrain
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.settings.few_shot import FewShotSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.vectors import plan_vectors
from teachonce.storage_schemas.class_vectors import ClassVectors, read_class_vectors, write_class_vectors
from teachonce.storage_schemas.errors import InputError
from teachonce.storage_schemas.target_store import open_root

CPU = Compute(device="cpu", precision="fp32", threads=1)
HINT = "Next: name it, or take it out; in prompts, underscores are spaces"


def labelled(folder: Path, labels: Sequence[str]) -> str:
    """A class folder for each label, with one image."""
    rng = np.random.default_rng(0)
    for label in labels:
        (folder / label).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / label / "1.png")
    return str(folder)


def shards_of(images: str, out: Path) -> str:
    stage = plan_shard((images,), out=str(out))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return str(out)


@pytest.mark.parametrize("empty", ["", " ", "_", " __ ", "\t", "\u00a0"])
def test_a_json_list_with_an_empty_name(tmp_path: Path, empty: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(["sea horse", empty, "cat"]))
    with pytest.raises(InputError) as caught:
        read_classes(str(path))
    shown = " ".join(f"a class without a name: {path}, entry 2: {empty!r}.".split())
    assert str(caught.value) == f"{shown} {HINT}"


def test_names_that_look_like_little_are_names(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(["sea_horse", "_a", "-", "0", " padded "]))
    assert read_classes(str(path)) == ("sea_horse", "_a", "-", "0", " padded ")


def test_lines_without_text_are_no_entries_but_underscores_are(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("\nsea_horse\n  \ncat\n")
    assert read_classes(str(path)) == ("sea_horse", "cat")
    path.write_text("sea_horse\n\n__\ncat\n")
    with pytest.raises(InputError) as caught:
        read_classes(str(path))
    assert str(caught.value) == f"a class without a name: {path}, entry 2: '__'. {HINT}"


def test_labels_of_images_and_of_shards(tmp_path: Path) -> None:
    images = labelled(tmp_path / "images", ["cat", "sea_horse"])
    shards = shards_of(images, tmp_path / "shards")
    assert classes_of(images, None) == classes_of(shards, None) == read_classes(shards) == ("cat", "sea_horse")

    images = labelled(tmp_path / "more", ["cat", "_"])
    shards = shards_of(images, tmp_path / "more-shards")
    for source, read in (
        (images, lambda: classes_of(images, None)),
        (shards, lambda: classes_of(shards, None)),
        (shards, lambda: read_classes(shards)),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert str(caught.value) == f"a class without a name: {source}, entry 1: '_'. {HINT}"


def test_a_data_set_with_an_empty_name(miniature: ModuleType, tmp_path: Path) -> None:
    miniature.build(tmp_path, "oxford_pets", classes=("cat", "dog"), per_class={"train": 1})
    assert read_classes(f"coop:oxford_pets={tmp_path}") == ("cat", "dog")
    known = miniature.build(tmp_path / "more", "oxford_pets", classes=("cat", "_"), per_class={"train": 1})
    assert known.folder.exists()
    for source, read in (
        (f"coop:oxford_pets={tmp_path}/more", lambda: read_classes(f"coop:oxford_pets={tmp_path}/more")),
        (
            f"coop:oxford_pets/train={tmp_path}/more",
            lambda: classes_of(f"coop:oxford_pets/train={tmp_path}/more", None),
        ),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert str(caught.value) == f"a class without a name: {source}, entry 2: '_'. {HINT}"


@pytest.mark.parametrize("content", ["", "\n \n", "[]"])
def test_an_empty_list(tmp_path: Path, content: str) -> None:
    path = tmp_path / f"classes.{'json' if content == '[]' else 'txt'}"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_classes(str(path))
    assert caught.value.fields == {"code": "class-list-empty", "where": str(path)}


@pytest.mark.parametrize(
    ("recipe", "options"),
    [("kd", {}), ("kd", {"embedding_loss": "mse", "embedding_weight": 0.0}), ("promptkd", {})],
)
def test_no_student_is_trained_by_a_loss_over_one_class(
    taught_store: Any, tiny_clip: Path, tmp_path: Path, recipe: str, options: dict[str, Any]
) -> None:
    vectors = ClassVectors(
        names=("cat",), vectors_CD=np.eye(1, 6, dtype=np.float32), bias_C=None, logit_scale=20.0, normalized=True
    )
    one = tmp_path / "one.zarr"
    origin = {"teacher": {"model": "T", "weights_digest": "0123"}, "templates": []}
    write_class_vectors(open_root(str(one), mode="a"), vectors, origin)

    def plan(**more: Any) -> Any:
        return plan_distill(
            str(taught_store.shards.location),
            str(taught_store.location),
            StudentConfig(model=f"local-dir:{tiny_clip}"),
            out=str(tmp_path / "b"),
            recipe=recipe,
            options={"epochs": 1, "batch_size": 8, **options, **more},
            settings=DistillSettings(vectors=str(one)),
            compute=CPU,
            show_progress=False,
        )

    with pytest.raises(InputError) as caught:
        plan()
    other = ", or let kd look at embeddings: --embedding-loss cosine" if recipe == "kd" else ""
    assert caught.value.fields == {
        "code": "class-only-one",
        "where": f"{one}, class 'cat'",
        "expected": "2 classes or more",
        "found": "1",
        "hint": f"compute class vectors of more classes into another store and name it with --vectors{other}",
    }
    assert not (tmp_path / "b").exists()
    if recipe == "kd":
        assert plan(embedding_loss="cosine", embedding_weight=1.0).vectors.names == ("cat",)


def test_no_prompts_are_tuned_on_one_class(tiny_clip_teacher: Path, tmp_path: Path) -> None:
    images = labelled(tmp_path / "images", ["cat", "dog"])

    def line(**changes: Any) -> str:
        with pytest.raises(InputError) as caught:
            plan_pretrain(
                images,
                TeacherConfig(model=f"local-dir:{tiny_clip_teacher}"),
                out=str(tmp_path / "p"),
                few=FewShotSettings(shots=1, **changes),
                compute=CPU,
            )
        assert not (tmp_path / "p").exists()
        return str(caught.value)

    said = (
        "nothing can be learned from one class: the loss is 0: class 'dog': expected 2 base classes or more, found 1."
    )
    assert line(base_classes="dog") == f"{said} Next: name more of them with --base-classes"
    (tmp_path / "classes.txt").write_text("dog\n")
    assert line(classes=str(tmp_path / "classes.txt")) == f"{said} Next: give more classes"


def test_class_vectors_of_one_class_stay_possible(tiny_clip_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\n")
    stage = plan_vectors(
        TeacherConfig(model=f"local-dir:{tiny_clip_teacher}"),
        out=str(tmp_path / "s.zarr"),
        settings=VectorsSettings(classes=str(tmp_path / "classes.txt")),
        compute=CPU,
    )
    run_stage(stage, stage.store, SerialExecutor(), progress=False)
    root = open_root(str(tmp_path / "s.zarr"), mode="r")
    assert read_class_vectors(root, where="s.zarr").names == ("cat",)
