"""Class lists from wherever they come: in order, and each class with a name of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.classes import classes_of, read_classes
from teachonce.stages.shard import plan_shard
from teachonce.storage_schemas.errors import InputError

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
    assert (
        classes_of(images, None) == classes_of(shards, None) == read_classes(shards) == ("cat", "sea_horse")
    )

    images = labelled(tmp_path / "more", ["cat", "_"])
    shards = shards_of(images, tmp_path / "more-shards")
    for source, read in ((images, lambda: classes_of(images, None)), (shards, lambda: classes_of(shards, None)),
                         (shards, lambda: read_classes(shards))):  # fmt: skip
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
        (f"coop:oxford_pets/train={tmp_path}/more", lambda: classes_of(f"coop:oxford_pets/train={tmp_path}/more", None)),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            read()
        assert str(caught.value) == f"a class without a name: {source}, entry 2: '_'. {HINT}"


@pytest.mark.parametrize("content", ["", "\n \n", "[]"])
def test_an_empty_list(tmp_path: Path, content: str) -> None:
    path = tmp_path / f"classes.{'json' if content == '[]' else 'txt'}"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_classes(str(path))
    assert str(caught.value) == f"an empty class list: {path}"
