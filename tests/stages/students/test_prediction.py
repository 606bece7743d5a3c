"""`LoadedStudent.predict`: the numbers of `teachonce predict`, for images of every form, in any thread."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from teachonce import load_student
from teachonce.cli import main
from teachonce.stages.students.bundle import LoadedStudent
from teachonce.storage_schemas.errors import InputError, TeachonceError

DATA = Path(__file__).parents[2] / "data"
BUNDLE = DATA / "0.1.0" / "student"


@pytest.fixture(scope="module")
def student() -> LoadedStudent:
    return load_student(str(BUNDLE))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Six pictures, of which one is gray, one is a palette PNG, and one is wide."""
    folder, rng, paths = tmp_path_factory.mktemp("photos"), np.random.default_rng(0), []
    for index, mode in enumerate(("RGB", "L", "P", "RGB", "RGB", "RGB")):
        small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8))
        size = (300, 40) if index == 3 else (60 + 9 * index, 80)
        paths.append(folder / f"{index}.{'png' if mode == 'P' else 'jpg'}")
        small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(paths[-1])
    return paths


def test_the_numbers_are_those_of_the_command(student, photos):
    told = CliRunner().invoke(
        main, ["predict", str(BUNDLE), *map(str, photos), "--top", "99", "--json", "--threads", "1", "--device", "cpu"]
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = student.predict(photos)
    finally:
        torch.set_num_threads(before)
    for one, entry in zip(found, json.loads(told.stdout), strict=True):
        assert one.top(99) == tuple((c["class"], c["probability"]) for c in entry["top"])
        assert (one.name, one.probability) == one.top(1)[0]
        assert one.probabilities_C.sum() == pytest.approx(1, abs=1e-6)


def test_an_image_may_have_any_form(student, photos):
    with Image.open(photos[2]) as opened:
        rgb = opened.convert("RGB")
        forms = [photos[2], str(photos[2]), photos[2].read_bytes(), opened, rgb, np.asarray(rgb)]
        found = [student.predict(form) for form in forms]
        together = student.predict(iter(forms), batch_size=4)
    png = io.BytesIO()
    rgb.save(png, "PNG")
    found += [*together, *student.predict(np.stack([np.asarray(rgb)] * 2)), student.predict(png.getvalue())]
    for one in found:
        np.testing.assert_allclose(one.probabilities_C, found[0].probabilities_C, atol=1e-6)


def test_temperature_flattens(student, photos):
    logits_1C = student.vectors.logits(student.student(student.pixels(Image.open(photos[0]))[None])).numpy()
    for temperature in (0.5, 1.0, 4.0):
        found = student.predict(photos[0], temperature=temperature).probabilities_C
        expected = torch.softmax(torch.from_numpy(logits_1C).double() / temperature, 1)[0]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_batches_change_nothing_but_rounding(student, photos):
    whole, single = student.predict(photos), student.predict(photos, batch_size=1)
    for one, other in zip(whole, single, strict=True):
        np.testing.assert_allclose(one.probabilities_C, other.probabilities_C, atol=1e-6)
    assert student.predict([]) == []


def test_threads_get_their_own_images_predictions(student, photos):
    expected = [student.predict(path) for path in photos]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(student.predict, photos * 20))
    for index, one in enumerate(found):
        np.testing.assert_allclose(one.probabilities_C, expected[index % len(photos)].probabilities_C, atol=1e-6)


def test_unusable_images_are_named_or_kept(student, photos):
    cut = photos[0].read_bytes()[:300]
    with pytest.raises(InputError) as error:
        student.predict([photos[0], cut])
    assert error.value.line == (
        "an image cannot be used: image 1: found truncated image [image-unusable]. "
        "Next: leave it out, or ask for predictions with `keep_unusable=True`"
    )
    found = student.predict([photos[0], cut, b"", photos[1]], batch_size=2, keep_unusable=True)
    assert [one.reason for one in found] == ["", "truncated image", "empty file", ""]
    assert [one.top() == () for one in found] == [False, True, True, False]
    assert np.isnan(found[1].probabilities_C).all()
    assert repr(found[1]) == "Prediction(truncated image)"
    np.testing.assert_allclose(found[3].probabilities_C, student.predict(photos[1]).probabilities_C, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((4, 4), np.uint8), "an array of uint8 (4, 4), not uint8 (height, width, 3)"),
        (np.zeros((4, 4, 3), np.float32), "an array of float32 (4, 4, 3), not uint8 (height, width, 3)"),
        ("no/such.jpg", "no such file"),
    ],
)
def test_what_is_no_image_is_told(student, image, found):
    with pytest.raises(InputError) as error:
        student.predict(image)
    assert (error.value.code, error.value.found) == ("image-unusable", found)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"temperature": 0}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"batch_size": 0}, "--batch-size"),
    ],
)
def test_impossible_settings(student, photos, options, where):
    with pytest.raises(InputError) as error:
        student.predict(photos, **options)
    assert (error.value.code, error.value.where) == ("setting-impossible", where)


def test_a_student_without_classes_says_so(photos):
    with pytest.raises(TeachonceError, match="this student has no class vectors"):
        load_student(str(DATA / "maps" / "student")).predict(photos[0])
