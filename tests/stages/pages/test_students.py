"""The page of two students on the same images: counted apart from it, and drawn in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline.storage import Location
from teachonce.stages.pages.students import compare_students
from teachonce.stages.students.bundle import load_student, write_bundle
from teachonce.stages.students.head import Head
from teachonce.stages.students.registry import family_of
from teachonce.stages.students.student import Student
from teachonce.storage_schemas.bundle import BundleConfig
from teachonce.storage_schemas.class_vectors import ClassVectors
from teachonce.storage_schemas.errors import MismatchError

NAMES = ("blue jay", "red fox", "house cat", "otter")
FOLDERS = {"Blue_Jay": 0, "red fox": 1, "house-cat": 2}


def write_student(folder: Path, tiny_clip, seed: int, names: tuple[str, ...] = NAMES) -> Path:
    """A student with random weights, as `distill` would leave it."""
    backbone = family_of(f"local-dir:{tiny_clip}").create(f"local-dir:{tiny_clip}", None, seed=0, size=None)
    head = Head(width=backbone.width, embed_dim=6, projector="linear", normalized=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = Student(backbone.module, backbone.preprocess, head)
    vectors_CD = np.random.default_rng(8).normal(size=(len(names), 6)).astype(np.float32)
    vectors = ClassVectors(names=names, vectors_CD=vectors_CD, bias_C=None, logit_scale=9.0, normalized=True)
    config = BundleConfig(
        student=backbone.config,
        head=head.to_json(),
        preprocess=backbone.preprocess.to_json(),
        class_names=names,
        logit_scale=vectors.logit_scale,
        normalized=True,
        origin={"recipe": "none", "seed": seed},
    )
    write_bundle(Location.of(folder), student, vectors, config)
    return folder


@pytest.fixture(scope="module")
def two(tiny_clip, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two")
    return write_student(folder / "first", tiny_clip, 2), write_student(folder / "second", tiny_clip, 5)


@pytest.fixture(scope="module")
def page(two, pictures, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("page") / "two.html"
    command = ["inspect", str(two[0]), "--against", str(two[1]), "--images", str(pictures), "--html", str(file)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.stderr
    return file


def test_what_the_page_counts_is_what_the_students_say(page, two, pictures) -> None:
    students = [load_student(str(one)) for one in two]
    right, agreed, total = [0, 0], 0, 0
    for file in sorted(path for path in Path(pictures).rglob("*") if path.is_file()):
        try:
            image = Image.open(file).convert("RGB")
        except OSError:
            continue
        first = [int(np.argmax(student.predict([image])[0].probabilities_C)) for student in students]
        label = FOLDERS.get(file.parent.name)
        total += 1
        agreed += first[0] == first[1]
        right = [n + (label is not None and one == label) for n, one in zip(right, first, strict=True)]
    tiles = dict(re.findall(r"<li><b>(.*?)</b><span>(.*?)</span></li>", page.read_text()))
    named = {name: value for value, name in tiles.items()}
    assert named["images compared"] == f"{total:,}"
    assert named["same first class"] == f"{agreed / total:.1%}"
    shown = re.findall(r"<b>([\d.]+%)</b><span>right: (\w+)</span>", page.read_text())
    assert [name for _, name in shown] == ["first", "second"]
    assert [value for value, _ in shown] == [f"{n / total:.1%}" for n in right]


def test_each_kind_of_difference_has_its_own_images_the_most_different_first(page) -> None:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    assert found is not None
    data = json.loads(found[1])
    assert data["galleries"]
    for gallery in data["galleries"]:
        distances = [float(group["note"].rpartition(" ")[2]) for group in gallery["groups"]]
        assert distances == sorted(distances, reverse=True)
        for group in gallery["groups"]:
            _, _, label, *_, bars, _ = data["samples"][str(group["rows"][0])]
            first = [next(i for i, _, who in bars if who == student) for student in (0, 1)]
            if gallery["title"].startswith("Only first"):
                assert first[0] == FOLDERS[label] != first[1]
            elif gallery["title"].startswith("Only second"):
                assert first[1] == FOLDERS[label] != first[0]
            elif gallery["title"] == "Both are wrong" and label in FOLDERS:
                assert FOLDERS[label] not in first


def test_students_of_other_classes_are_refused(two, tiny_clip, pictures, tmp_path) -> None:
    other = write_student(tmp_path / "other", tiny_clip, 3, ("yak", "zebra"))
    with pytest.raises(MismatchError, match="the two students know other classes") as error:
        compare_students((str(two[0]), str(other)), str(pictures), ("first", "other"))
    assert error.value.code == "students-other-classes"


@pytest.mark.slow
def test_chromium_draws_both(page, browser, classes_in) -> None:
    found = classes_in(browser.dom(page))
    assert found.drawn == {"per-class"}
    assert found.cards == found.images > 0
