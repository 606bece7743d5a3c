"""Labels and class names: what is the same, what is not, and what is said about it."""

from __future__ import annotations

import json

import pytest
from teachonce.stages.inputs.class_match import ClassMatcher, base_classes
from teachonce.storage_schemas.errors import InputError

NAMES = (
    "tench, Tinca tinca",
    "great white shark, white shark",
    "crane",
    "sailing crane, crane",
    "Blue-jay",
    "red fox",
    "maillot, tank suit",
    "maillot",
    "jack-o'-lantern",
    "Café Noir",
    "Faces_easy",
    "Faces",
)


@pytest.mark.parametrize(
    ("label", "class_id"),
    [
        ("tench, Tinca tinca", 0),
        ("tench", 0),
        ("Tinca_tinca", 0),
        ("TENCH__tinca-Tinca".replace("tinca-", "x"), None),
        ("white-shark", 1),
        ("crane", 2),  # a whole name goes before a synonym
        ("Sailing_Crane", 3),
        ("blue jay", 4),
        ("BLUE_JAY", 4),
        ("blue__jay ", 4),
        ("bluejay", None),
        ("Red-Fox", 5),
        ("red fox, Vulpes vulpes", 5),
        ("tank-suit", 6),
        ("maillot", 7),
        ("Jack_o'_lantern", 8),
        ("Cafe\u0301 noir", 9),
        ("faces_easy", 10),
        ("FACES", 11),
        ("face", None),
        ("", None),
        (",", None),
    ],
)
def test_a_label_finds_its_class(label, class_id):
    assert ClassMatcher(NAMES).match(label).class_id == class_id


@pytest.mark.parametrize(
    ("names", "label", "reason"),
    [
        (NAMES, "red foxx", "no such class; the nearest is 'red fox'"),
        (NAMES, "spaceship", "no such class"),
        (("crane, bird", "crane, machine"), "crane", "fits 2 classes: 'crane, bird', 'crane, machine'"),
        (("Red fox", "red_fox"), "RED FOX", "fits 2 classes: 'Red fox', 'red_fox'"),
        (("a", "b"), "a, b", "fits 2 classes: 'a', 'b'"),
    ],
)
def test_what_fits_none_or_several_says_so(names, label, reason):
    match = ClassMatcher(names).match(label)
    assert (match.class_id, match.reason) == (None, reason)


def test_an_exact_name_is_never_ambiguous():
    assert ClassMatcher(("Red fox", "red_fox")).match("red_fox").class_id == 1


def test_half_is_the_first_half_rounded_up():
    assert base_classes("@half", "abcde").tolist() == [True, True, True, False, False]
    assert base_classes("first-half", "abcd").tolist() == [True, True, False, False]


def test_base_classes_from_a_file_a_json_list_and_the_command_line(tmp_path):
    (tmp_path / "base.txt").write_text("red_fox\n\n  tench, Tinca tinca \n")
    (tmp_path / "base.json").write_text(json.dumps(["Red Fox", "tench"]))
    expected = [i in (0, 5) for i in range(len(NAMES))]
    assert base_classes(str(tmp_path / "base.txt"), NAMES).tolist() == expected
    assert base_classes(str(tmp_path / "base.json"), NAMES).tolist() == expected
    assert base_classes("red fox, tench", NAMES).tolist() == expected
    assert base_classes("red-fox", NAMES).tolist() == [i == 5 for i in range(len(NAMES))]


def test_impossible_splits_are_refused(tmp_path):
    (tmp_path / "base.txt").write_text("red fox\nred foxx\n")
    (tmp_path / "base.json").write_text("{")
    for spec, text in (
        (
            str(tmp_path / "base.txt"),
            "--base-classes names no class: no such class; the nearest is 'red fox': red foxx",
        ),
        (
            "none.txt",
            "no such file, and no class of that name: --base-classes none.txt. Next: give a file with one "
            "name a line, names with commas between them, or @half",
        ),
    ):
        with pytest.raises(InputError) as error:
            base_classes(spec, NAMES)
        assert str(error.value) == text
    with pytest.raises(InputError) as refused:
        base_classes(str(tmp_path / "base.json"), NAMES)
    assert refused.value.code == "json-malformed"
    with pytest.raises(InputError) as error:
        base_classes("a,b", ("a", "b"))
    assert error.value.fields == {
        "code": "base-classes-one-sided",
        "where": "--base-classes",
        "expected": "1 to 1 of 2 classes",
        "found": "2",
    }
