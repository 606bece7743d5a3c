"""What is refused of spellings, layouts and split files, each with one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from teachonce.stages.inputs.classes import read_classes
from teachonce.stages.inputs.sources import open_sources
from teachonce.storage_schemas.errors import InputError

NAMES = (
    "imagenet, caltech101, oxford_pets, stanford_cars, oxford_flowers, food101, fgvc_aircraft, sun397, dtd, eurosat, "
    "ucf101, imagenetv2, imagenet_sketch, imagenet_a, imagenet_r"
)


def walk(argument: str) -> None:
    (source,) = open_sources([argument])
    list(source.walk())


def refusal(call: Callable[[str], object], argument: str, root: Path) -> str:
    """The error's line, with `…` for the folder."""
    with pytest.raises(InputError) as error:
        call(argument.replace("…", str(root)))
    return str(error.value).replace(str(root), "…")


@pytest.mark.parametrize(
    ("spelling", "line"),
    [
        (
            "coop:dtd/train",
            "not the name of a data set: coop:dtd/train: expected coop:NAME/SPLIT=DATA, found no DATA. "
            "Next: as in coop:oxford_pets/train=FOLDER",
        ),
        (
            "coop:dtd/train=",
            "not the name of a data set: coop:dtd/train=: expected coop:NAME/SPLIT=DATA, found no DATA. "
            "Next: as in coop:oxford_pets/train=FOLDER",
        ),
        (
            "coop:dtd/=…",
            "not the name of a data set: coop:dtd/=…: expected coop:NAME/SPLIT=DATA, found no SPLIT. "
            "Next: as in coop:oxford_pets/train=FOLDER",
        ),
        ("coop:pets/train=…", "no such data set: coop:pets/train=…. Next: did you mean oxford_pets?"),
        (
            "coop:dtd/training=…",
            "dtd has no such split: coop:dtd/training=…: expected train, val, test, found training. Next: did you mean train?",
        ),
        ("coop:birds/train=…", f"no such data set: coop:birds/train=…. Next: one of {NAMES}"),
        (
            "coop:imagenet/val=…",
            "imagenet has no such split: coop:imagenet/val=…: expected train, test, found val. "
            "Next: go on without a validation set: what CoOp takes for ImageNet's is its test set",
        ),
        (
            "coop:imagenet_a/train=…",
            "imagenet_a has no such split: coop:imagenet_a/train=…: expected test, found train",
        ),
        ("coop:dtd/train=…/data", "no such folder: …/data. Next: name the folder that holds dtd/"),
        (
            "coop:dtd/train=…",
            "a data set is not there: dtd: expected …/dtd, found nothing. Next: "
            'lay it out as the section "DTD" of CoOp\'s DATASETS.md says',
        ),
        ("coop:dtd/train=s3://b/c", "only local folders can be used here: s3://b/c. Next: mount or copy it first"),
    ],
)
def test_spellings_and_what_is_not_there(spelling, line, tmp_path):
    assert refusal(walk, spelling, tmp_path) == line
    assert refusal(read_classes, spelling, tmp_path) == line


def test_images_need_a_split(miniature, tmp_path):
    miniature.build(tmp_path, "oxford_pets", per_class={"train": 1})
    assert refusal(walk, "coop:oxford_pets=…", tmp_path) == (
        "a split must be named for the images of a data set: coop:oxford_pets=…. Next: "
        "coop:oxford_pets/train=… or coop:oxford_pets/val=… or coop:oxford_pets/test=…"
    )


@pytest.mark.parametrize(
    ("name", "gone", "title"),
    [
        ("oxford_pets", "oxford_pets/split_zhou_OxfordPets.json", "OxfordPets"),
        ("oxford_pets", "oxford_pets/images", "OxfordPets"),
        ("stanford_cars", "stanford_cars/cars_train", "StanfordCars"),
        ("fgvc_aircraft", "fgvc_aircraft/variants.txt", "FGVCAircraft"),
        ("fgvc_aircraft", "fgvc_aircraft/images_variant_val.txt", "FGVCAircraft"),
        ("imagenet", "imagenet/images/val", "ImageNet"),
        ("imagenetv2", "imagenetv2/classnames.txt", "ImageNetV2"),
        ("imagenet_r", "imagenet-rendition/imagenet-r", "ImageNet-R"),
    ],
)
def test_the_missing_file_or_folder_is_named(name, gone, title, miniature, tmp_path):
    miniature.build(tmp_path, name, per_class={"train": 1, "test": 1})
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    line = (
        f"a data set is not complete: {name}: expected …/{gone}, found nothing. "
        f'Next: lay it out as the section "{title}" of CoOp\'s DATASETS.md says'
    )
    assert refusal(walk, f"coop:{name}/test=…", tmp_path) == line


def test_one_split_of_imagenet_does_not_need_the_other(miniature, tmp_path):
    known = miniature.build(tmp_path, "imagenet", per_class={"train": 1, "test": 1})
    (known.folder / "images" / "val").rename(tmp_path / "elsewhere")
    walk(f"coop:imagenet/train={tmp_path}")


A, B = ["a.jpg", 0, "cat"], ["b.jpg", 1, "dog"]
SHAPE = (
    "a split file's entry has another shape: …/s.json, train, entry 2: expected [path, label id, class name], found "
)
PATH = "not a plain path below the images' folder: …/s.json, train, entry 2: found "
NAME = "not a class name: …/s.json, train, entry 2: found "
KIND = "not a split file of CoOp's: …/s.json: expected lists under train, val and test, found "


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "not JSON: …/s.json: found Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[" * 100_000, "not JSON: …/s.json: found nested too deeply"),
        (b"\xff\xfe{", "not text in UTF-16-LE, as its byte-order mark says: …/s.json. Next: save it as UTF-8"),
        ([], f"{KIND}[]"),
        ({}, f"{KIND}{{}}"),
        ({"train": [], "test": []}, f"{KIND}train, test"),
        ({"train": [], "val": {}, "test": []}, f"{KIND}train, val, test"),
        ([A, "b.jpg"], f"{SHAPE}'b.jpg'"),
        ([A, ["b.jpg", 1]], f"{SHAPE}['b.jpg', 1]"),
        ([A, [*B, 3]], f"{SHAPE}['b.jpg', 1, 'dog', 3]"),
        ([A, ["b.jpg", "1", "dog"]], f"{SHAPE}['b.jpg', '1', 'dog']"),
        ([A, ["b.jpg", True, "dog"]], f"{SHAPE}['b.jpg', True, 'dog']"),
        ([A, ["b.jpg", 1.0, "dog"]], f"{SHAPE}['b.jpg', 1.0, 'dog']"),
        ([A, [7, 1, "dog"]], f"{PATH}7"),
        ([A, ["", 1, "dog"]], f"{PATH}''"),
        ([A, ["/etc/passwd", 1, "dog"]], f"{PATH}'/etc/passwd'"),
        ([A, ["../b.jpg", 1, "dog"]], f"{PATH}'../b.jpg'"),
        ([A, ["x/../../b.jpg", 1, "dog"]], f"{PATH}'x/../../b.jpg'"),
        ([A, ["x//b.jpg", 1, "dog"]], f"{PATH}'x//b.jpg'"),
        ([A, ["./a.jpg", 1, "dog"]], f"{PATH}'./a.jpg'"),
        ([A, ["x/", 1, "dog"]], f"{PATH}'x/'"),
        ([A, ["x\\b.jpg", 1, "dog"]], f"{PATH}'x\\\\b.jpg'"),
        ([A, ["b\0.jpg", 1, "dog"]], f"{PATH}'b\\x00.jpg'"),
        ([A, ["\x1b[2J.jpg", 1, "dog"]], f"{PATH}'\\x1b[2J.jpg'"),
        ([A, ["\ud800.jpg", 1, "dog"]], f"{PATH}'\\ud800.jpg'"),
        ([A, ["b.jpg", 1, " "]], f"{NAME}' '"),
        ([A, ["b.jpg", 1, None]], f"{NAME}None"),
        ([A, ["b.jpg", 1, "d\nog"]], f"{NAME}'d\\nog'"),
        ([A, ["a.jpg", 1, "dog"]], "an image stands twice in a split: …/s.json, train, entry 2: found 'a.jpg'"),
        (
            [A, ["b.jpg", 0, "dog"]],
            "a label id has two class names: …/s.json, train, entry 2, id 0: expected 'cat', found 'dog'",
        ),
        (
            [A, ["b.jpg", 1, "cat"]],
            "a class name has two label ids: …/s.json, train, entry 2, 'cat': expected 0, found 1",
        ),
        ([A, ["b.jpg", 2, "dog"]], "label ids with gaps: …/s.json: expected 2 classes with ids 0 to 1, found no id 1"),
        ([A, ["b.jpg", -1, "dog"]], "label ids with gaps: …/s.json: expected 2 classes with ids 0 to 1, found no id 1"),
        ({"train": [], "val": [], "test": []}, "a split file without images: …/s.json"),
        (
            {"train": [A, B], "val": [["c.jpg", 0, "dog"]], "test": []},
            "a label id has two class names: …/s.json, val, entry 1, id 0: expected 'cat', found 'dog'",
        ),
    ],
)
def test_split_files(content, line, miniature, tmp_path):
    known = miniature.build(tmp_path, "oxford_pets", per_class={"train": 1})
    if isinstance(content, list) and not line.startswith(KIND):
        content = {"train": content, "val": [], "test": []}
    data = (
        content
        if isinstance(content, bytes)
        else content.encode()
        if isinstance(content, str)
        else json.dumps(content).encode()
    )
    (known.folder / "split_zhou_OxfordPets.json").write_bytes(data)
    line = line.replace("…/s.json", "…/oxford_pets/split_zhou_OxfordPets.json")
    assert refusal(walk, "coop:oxford_pets/train=…", tmp_path) == line
    assert refusal(read_classes, "coop:oxford_pets=…", tmp_path) == line


def test_the_same_image_may_stand_in_two_splits_and_a_class_in_one(miniature, tmp_path):
    known = miniature.build(tmp_path, "oxford_pets", per_class={"train": 1})
    split = {"train": [A], "val": [A], "test": [B]}
    (known.folder / "split_zhou_OxfordPets.json").write_text(json.dumps(split))
    assert read_classes(f"coop:oxford_pets={tmp_path}") == ("cat", "dog")


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("variants.txt", "cat\ndog\ncat\n", "a class name stands twice: …/variants.txt, line 3: found 'cat'"),
        ("variants.txt", "\n", "an empty class list: …/variants.txt"),
        (
            "variants.txt",
            b"\xff\n",
            "not text in UTF-8: …/variants.txt, line 1. Next: save it as UTF-8; if it is Latin-1: "
            "iconv -f LATIN1 -t UTF-8 …/variants.txt > …/variants-utf8.txt",
        ),
        ("variants.txt", "c\x1bat\n", "not a class name: …/variants.txt, line 1: found 'c\\x1bat'"),
        (
            "images_variant_test.txt",
            "1 F/A-18\n2 F-16\n",
            "a class that variants.txt lacks: …/images_variant_test.txt, line 2: found 'F-16'",
        ),
        (
            "images_variant_test.txt",
            "1\n",
            "a class that variants.txt lacks: …/images_variant_test.txt, line 1: found ''",
        ),
        (
            "images_variant_test.txt",
            "../1 F/A-18\n",
            "not a plain path below the images' folder: …/images_variant_test.txt, line 1: found '../1.jpg'",
        ),
        (
            "images_variant_test.txt",
            "1 F/A-18\n\n1 A300B4\n",
            "an image stands twice in a split: …/images_variant_test.txt, entry 2: found '1.jpg'",
        ),
    ],
)
def test_aircraft(file, content, line, miniature, tmp_path):
    known = miniature.build(tmp_path, "fgvc_aircraft", per_class={"test": 1})
    (known.folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refusal(walk, "coop:fgvc_aircraft/test=…", tmp_path) == line.replace("…", "…/fgvc_aircraft")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            "n2 cat\nn1 dog\n",
            "synsets out of order: …/classnames.txt, line 2: expected one after n2, found n1. Next: "
            "get classnames.txt as CoOp's DATASETS.md says: the order of its lines is that of the labels",
        ),
        (
            "n1 cat\nn1 dog\n",
            "synsets out of order: …/classnames.txt, line 2: expected one after n1, found n1. Next: "
            "get classnames.txt as CoOp's DATASETS.md says: the order of its lines is that of the labels",
        ),
        ("n1 cat\nn2\n", "not a class name: …/classnames.txt, line 2: found ''"),
        ("", "an empty class list: …/classnames.txt"),
        (
            b"\xff",
            "not text in UTF-8: …/classnames.txt, line 1. Next: save it as UTF-8; if it is Latin-1: iconv -f LATIN1 -t "
            "UTF-8 …/classnames.txt > …/classnames-utf8.txt",
        ),
    ],
)
@pytest.mark.parametrize("name", ["imagenet", "imagenetv2", "imagenet_a"])
def test_classnames(name, content, line, miniature, tmp_path):
    known = miniature.build(tmp_path, name, per_class={"test": 1})
    (known.folder / "classnames.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    line = line.replace("…", f"…/{known.folder.name}")
    assert refusal(walk, f"coop:{name}/test=…", tmp_path) == line
    assert refusal(read_classes, f"coop:{name}=…", tmp_path) == line


def test_folders_and_classes_must_fit(miniature, tmp_path):
    sort = "Next: sort the images into class folders as CoOp's DATASETS.md says"
    for name, folder, stranger in (
        ("imagenet", "imagenet/images/val", "n00000001"),
        ("imagenetv2", "imagenetv2/imagenetv2-matched-frequency-format-val", "03"),
        ("imagenet_r", "imagenet-rendition/imagenet-r", "n00000001"),
    ):
        known = miniature.build(tmp_path, name, per_class={"test": 1})
        (tmp_path / folder / stranger).mkdir()
        names_file = f"…/{known.folder.name}/classnames.txt"
        assert refusal(walk, f"coop:{name}/test=…", tmp_path) == (
            f"a class folder that classnames.txt lacks: …/{folder}/{stranger}. "
            f"Next: add it to {names_file}, or take the folder away"
        )
        (tmp_path / folder / stranger).rmdir()
        image, _ = known.images["test"][0]
        (known.folder / image).rename(tmp_path / folder / "x.JPEG")
        assert refusal(walk, f"coop:{name}/test=…", tmp_path) == (
            f"an image lies in no class folder: …/{folder}/x.JPEG. {sort}"
        )
        deep = (known.folder / image).with_name("deep")
        deep.mkdir()
        (tmp_path / folder / "x.JPEG").rename(deep / "x.JPEG")
        path = (deep / "x.JPEG").relative_to(tmp_path)
        assert refusal(walk, f"coop:{name}/test=…", tmp_path) == f"an image lies in no class folder: …/{path}. {sort}"
        class_folder = (known.folder / image).parent
        class_folder.rename(tmp_path / f"{name}-elsewhere")
        if name != "imagenet_r":
            path = class_folder.relative_to(tmp_path)
            assert refusal(walk, f"coop:{name}/test=…", tmp_path) == (
                f"a class of classnames.txt has no folder: …/{path}. {sort}"
            )
    # A variant has the classes that it has folders of.
    assert read_classes(f"coop:imagenet_r={tmp_path}") == ("goldfish", "great white shark")


def test_files_of_windows_and_names_with_odd_blanks(miniature, tmp_path):
    known = miniature.build(tmp_path, "fgvc_aircraft", per_class={"test": 1})
    names = (known.folder / "variants.txt").read_text().split("\n")[:-1]
    (known.folder / "variants.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(names).encode())
    assert read_classes(f"coop:fgvc_aircraft={tmp_path}") == tuple(names)
    for mark in ("\x85", "\u2028", "\x0b", "\x1c"):
        (known.folder / "variants.txt").write_text(f"A{mark}B\n", encoding="utf-8")
        line = f"not a class name: …/fgvc_aircraft/variants.txt, line 1: found {f'A{mark}B'!r}"
        assert refusal(read_classes, "coop:fgvc_aircraft=…", tmp_path) == line
    known = miniature.build(tmp_path, "oxford_pets", per_class={"train": 1})
    file = known.folder / "split_zhou_OxfordPets.json"
    before = read_classes(f"coop:oxford_pets={tmp_path}")
    for data in (b"\xef\xbb\xbf" + file.read_bytes(), file.read_text().encode("utf-16")):
        file.write_bytes(data)
        assert read_classes(f"coop:oxford_pets={tmp_path}") == before
