"""`benchmark reverse-distillation` on small pictures: from data to table, and again without any work; what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline.storage import Location
from teachonce.stages.protocols.defect_settings import DATASETS, DefectBenchmarkSettings
from teachonce.stages.protocols.reverse_distillation import (
    DefectRequest,
    defect_table,
    student_commands,
    teacher_commands,
)
from teachonce.storage_schemas.errors import InputError


def draw(path, seed, box=None):
    rng = np.random.default_rng(seed)
    picture = np.clip(128 + 60 * np.sin(np.arange(48) / 2)[None, :] + rng.normal(0, 9, (40, 48)), 0, 255)
    if box is not None:
        picture[box] = 10
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.astype(np.uint8)).save(path)


@pytest.fixture
def data(tmp_path):
    for part in ("stripes", "bars"):
        for number in range(4):
            draw(tmp_path / f"data/{part}/train/good/{number}.png", number)
        draw(tmp_path / f"data/{part}/test/good/0.png", 50)
        box = (slice(10, 25), slice(10, 30))
        draw(tmp_path / f"data/{part}/test/hole/0.png", 60, box)
        mask = np.zeros((40, 48), np.uint8)
        mask[box] = 255
        (tmp_path / f"data/{part}/ground_truth/hole").mkdir(parents=True)
        Image.fromarray(mask).save(tmp_path / f"data/{part}/ground_truth/hole/0_mask.png")
    return tmp_path / "data"


def words(data, out) -> list[str]:
    given = f"benchmark reverse-distillation --data {data} --out {out} --teacher timm:test_resnet --teacher-pretrained random"
    more = "--size 64 --student decoder:resnet18 --epochs 1 --seeds 1 --threads 1 --device cpu --executor serial --json"
    return [*given.split(), *more.split(), "--distill-options", "--batch-size 2"]


@pytest.mark.slow
def test_from_data_to_table(data, tmp_path):
    """One category has no picture that can be read; the other one is done. Run again, nothing is done twice."""
    for file in (data / "bars/train/good").iterdir():
        file.write_bytes(b"no picture")
    out = tmp_path / "run"
    done = CliRunner().invoke(main, words(data, out))
    assert done.exit_code == 1
    facts = json.loads(done.stdout)
    assert [(failure["part"], failure["code"]) for failure in facts["failed"]] == [("bars", "images-none-usable")]
    (row,) = facts["rows"]
    kept = json.loads((out / "stripes/anomalies-1/results.json").read_text())
    assert row["runs"] == [{"seed": 1, **kept}]
    assert kept["pixel_auroc"] is not None
    assert (row["part"], row["train_images"]) == ("stripes", 4)
    numbers = sum(channels * side**2 for channels, side in ((32, 16), (48, 8), (192, 4)))
    assert row["bytes_per_image"] == pytest.approx(2 * numbers, rel=0.01)
    assert json.loads((out / "results.json").read_text()) == facts
    assert (out / "results.md").read_text() == defect_table(facts) + "\n"
    written = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name in ("config.json", "scores.csv")}
    again = CliRunner().invoke(main, words(data, out))
    assert json.loads(again.stdout) == facts
    assert {file: file.stat().st_mtime_ns for file in written} == written


def test_the_table_has_means_and_says_what_failed():
    def row(part, pixel):
        run = {"image_auroc": 0.5, "pixel_auroc": pixel, "aupro": None}
        return {"part": part, "runs": [run], "train_images": 4, "bytes_per_image": 3.67e6}

    facts = {"student": "decoder:x", "teacher": "t", "levels": "a,b", "encoding": "fp16", "epochs": 1}
    lines = defect_table(
        {**facts, "rows": [row("a", 0.9), row("b", 0.8)], "failed": [{"part": "c", "error": "it broke"}]}
    ).splitlines()
    assert lines[0] == "decoder:x of t, a,b in fp16, 1 epoch"
    assert lines[3].split() == ["a", "50.00%", "90.00%", "-", "4", "3.7", "MB"]
    assert lines[5].split() == ["mean", "50.00%", "85.00%", "-"]
    assert lines[6] == "failed: c: it broke"


def test_commands_are_those_of_the_paper(data, tmp_path):
    settings = DefectBenchmarkSettings(data=str(data), parts="bars")
    request = DefectRequest.of(settings, Location.of(tmp_path / "run"), compute={"device": "cpu"}, more={})
    shard, cache, *_ = teacher_commands(request, "bars", ("--executor", "serial"))
    assert shard[:2] == ["shard", f"mvtec:bars/train={data}"]
    line = " ".join(cache)
    assert "--teacher timm:wide_resnet50_2 --teacher-size 256 --teacher-crop-mode squash --teacher-crop-pct 1" in line
    assert "--targets features.layer1,features.layer2,features.layer3 --encoding fp16 --device cpu" in line
    distill, anomalies = student_commands(request, "bars", ())
    assert "--student decoder:wide_resnet50_2 --recipe reverse-distillation" in " ".join(distill)
    assert "--epochs 200 --reuse-views --seed 111" in " ".join(distill)
    assert f"--masks mvtec:bars/test={data}" in " ".join(anomalies)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"parts": "wood"}, "not a category in MVTec AD's layout: "),
        ({"data": "/nowhere"}, "no such folder: /nowhere"),
        ({"dataset": "aitex"}, "not AITEX's layout, or no such fabric: "),
    ],
)
def test_what_is_refused(data, tmp_path, settings, expected):
    with pytest.raises(InputError) as error:
        DefectRequest.of(
            DefectBenchmarkSettings(**{"data": str(data), **settings}),
            Location.of(tmp_path / "run"),
            compute={},
            more={},
        )
    assert str(error.value).startswith(expected)


def test_every_layout_can_be_chosen():
    assert DATASETS == ("mvtec", "aitex", "tilda")
