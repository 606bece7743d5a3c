"""`teachonce datasets`: what a folder holds, as tables and as JSON."""

from __future__ import annotations

import json

from click.testing import CliRunner
from teachonce.cli import main


def listed(*words: str):
    return CliRunner().invoke(main, ["datasets", *words])


def test_what_is_found_what_cannot_be_used_and_what_is_missing(miniature, tmp_path):
    counts = {"train": 3, "val": 1, "test": 2}
    for name in ("imagenet", "oxford_pets", "fgvc_aircraft", "imagenet_a", "dtd", "food101"):
        miniature.build(tmp_path, name, per_class=counts)
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").write_text("[]")
    (tmp_path / "food-101" / "split_zhou_Food101.json").unlink()
    result = listed(str(tmp_path))
    assert result.exit_code == 0
    assert result.stderr == ""
    assert (
        result.stdout.replace(str(tmp_path), "…")
        == """\
Found (images, classes)
  data set       train  val  test  classes  base  novel
  imagenet           9    -     6        3     2      1
  oxford_pets       12    4     8        4     2      2
  fgvc_aircraft      9    3     6        3     2      1
  imagenet_a         -    -     6        3     2      1

Cannot be used
  dtd  not a split file of CoOp's: …/dtd/split_zhou_DescribableTextures.json: expected lists under train, val and test, found []

Not there (what is missing first)
  caltech101       …/caltech-101
  stanford_cars    …/stanford_cars
  oxford_flowers   …/oxford_flowers
  food101          …/food-101/split_zhou_Food101.json
  sun397           …/sun397
  eurosat          …/eurosat
  ucf101           …/ucf101
  imagenetv2       …/imagenetv2
  imagenet_sketch  …/imagenet-sketch
  imagenet_r       …/imagenet-rendition
"""
    )
    facts = json.loads(listed(str(tmp_path), "--json").stdout)
    assert [f["name"] for f in facts] == list(miniature.NAMES)
    assert facts[2] == {
        "name": "oxford_pets",
        "folder": "oxford_pets",
        "found": True,
        "missing": None,
        "problem": None,
        "images": {"train": 12, "val": 4, "test": 8},
        "classes": 4,
        "base_classes": 2,
        "novel_classes": 2,
        "promptkd_loss_weight": 1000,
        "promptkd_harmonic_mean": 97.15,
    }
    assert facts[5] == {
        "name": "food101",
        "folder": "food-101",
        "found": False,
        "missing": f"{tmp_path}/food-101/split_zhou_Food101.json",
        "problem": None,
        "images": {},
        "classes": 0,
        "base_classes": 0,
        "novel_classes": 0,
        "promptkd_loss_weight": 1000,
        "promptkd_harmonic_mean": 93.05,
    }
    assert facts[8]["found"] is False
    assert facts[8]["problem"].startswith("not a split file of CoOp's: ")


def test_nothing_to_be_found_is_an_error(tmp_path):
    result = listed(str(tmp_path))
    assert result.exit_code == 1
    assert result.stdout.startswith("Not there (what is missing first)\n  imagenet ")
    assert len(result.stdout.splitlines()) == 16
    assert result.stderr == (
        f"Error: no data set that can be used: {tmp_path} [datasets-none-usable]. Next: see docs/datasets.md for the layout\n"
    )
    result = listed(str(tmp_path / "none"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: no such folder: {tmp_path}/none [folder-missing]. Next: name the folder that holds the data sets' folders\n"
    )


def test_weights_and_results_are_those_that_promptkd_publishes(tmp_path):
    facts = json.loads(listed(str(tmp_path), "--json").stdout)
    published = {f["name"]: f["promptkd_harmonic_mean"] for f in facts if f["promptkd_harmonic_mean"]}
    assert list(published.values()) == [77.62, 97.77, 97.15, 83.13, 90.24, 93.05, 45.17, 82.60, 77.94, 89.14, 86.10]
    light = {f["name"] for f in facts if f["promptkd_loss_weight"] == 200}
    assert light == {"fgvc_aircraft", "oxford_flowers", "dtd"}
    assert {f["promptkd_loss_weight"] for f in facts} == {200, 1000}
