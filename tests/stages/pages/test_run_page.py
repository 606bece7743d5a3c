"""Pages of trainings: curves of the log, settings, what two of them differ in, and where two students differ on images."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.storage import Location
from teachonce.stages.pages.run_page import Run, is_run, run_page
from teachonce.storage_schemas.bundle import BundleConfig
from teachonce.storage_schemas.errors import InputError


def write_run(folder, *, lr: float = 0.1, lines: int = 50, finished: bool = True) -> None:
    (folder / "run").mkdir(parents=True)
    log = [{"step": i * 20, "epoch": i // 10, "loss": 3 / (i + 1), "lr": lr} for i in range(1, lines + 1)]
    log[-1]["validation_accuracy"] = 0.625
    text = "".join(json.dumps(line) + "\n" for line in log) + '{"step": 99'
    (folder / "run" / "log.jsonl").write_text(text)
    if finished:
        config = BundleConfig(
            student={"family": "timm", "name": "<b>resnet</b>"},
            head={},
            preprocess={"size": 32},
            class_names=("a", "b"),
            logit_scale=1.0,
            normalized=True,
            origin={"recipe": "kd", "settings": {"lr": lr, "epochs": 5}, "store": {"teacher": {"model": "T"}}},
        )
        (folder / "config.json").write_bytes(config.to_bytes())


def specs(page: bytes) -> dict:
    found = re.search(rb'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])["charts"]


def test_a_curve_is_the_log(tmp_path) -> None:
    write_run(tmp_path / "student")
    page = run_page([Run.open(str(tmp_path / "student"))])
    text = page.to_bytes()
    curve = specs(text)["curve0"]["data"]["values"]
    assert [(point["step"], point["value"]) for point in curve] == [(i * 20, 3 / (i + 1)) for i in range(1, 51)]
    assert page.lead == "<b>resnet</b>, trained with the recipe kd from stored outputs of T, 2 classes"
    assert b"&lt;b&gt;resnet&lt;/b&gt;" in text
    assert b"<b>resnet" not in text
    assert [(tile.value, tile.name) for tile in page.tiles] == [
        ("1,000", "steps"),
        ("0.05882", "last loss"),
        ("62.5%", "best validation"),
    ]


def test_two_trainings_show_what_differs(tmp_path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", lr=0.2)
    page = run_page([Run.open(str(tmp_path / name)) for name in "ab"])
    (differences,) = [section for section in page.sections if section.id == "differences"]
    assert differences.blocks[0].rows == [["origin.settings.lr", "0.1", "0.2"]]  # type: ignore[union-attr]
    assert {point["run"] for point in specs(page.to_bytes())["curve0"]["data"]["values"]} == {"a", "b"}


def test_a_training_that_has_begun_is_shown_so_far(tmp_path) -> None:
    write_run(tmp_path / "student", finished=False)
    assert is_run(Location.of(str(tmp_path / "student")))
    page = run_page([Run.open(str(tmp_path / "student" / "run").removesuffix("/run"))])
    assert page.lead == "A training of 1000 steps so far"
    assert page.notes == ["student is not finished: the training has begun, and its bundle is not there yet."]


def test_anything_else_is_refused(tmp_path) -> None:
    assert not is_run(Location.of(str(tmp_path)))
    with pytest.raises(InputError, match="no training here") as error:
        Run.open(str(tmp_path))
    assert error.value.code == "run-missing"


def test_the_command_tells_a_bundle_from_a_store(tmp_path) -> None:
    write_run(tmp_path / "student")
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "student"), "--html", str(tmp_path / "page.html")])
    assert (result.exit_code, result.stdout) == (0, "")
    assert (tmp_path / "page.html").stat().st_size < 2_000_000


@pytest.mark.parametrize(
    "options", [["--json"], ["--samples"], ["--export", "table.csv"], ["--generation", "1"], ["--shards", "shards"]]
)
def test_options_of_stores_are_refused_where_the_page_is_of_trainings(tmp_path, options) -> None:
    write_run(tmp_path / "student")
    page = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "student"), "--html", str(page), *options])
    assert (result.exit_code, page.exists()) == (1, False)
    assert "[options-exclude-each-other]" in result.stderr
    assert options[0] in result.stderr


@pytest.mark.slow
def test_chromium_draws_the_curves(tmp_path, browser, classes_in) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", lr=0.2)
    (tmp_path / "page.html").write_bytes(run_page([Run.open(str(tmp_path / name)) for name in "ab"]).to_bytes())
    assert classes_in(browser.dom(tmp_path / "page.html")).drawn == {"curve0", "curve1", "curve2"}
