"""`teachonce plan` and `cache --dry-run`, as a user types them: what they tell, what they leave alone, what they refuse."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.ledger import Ledger, Plan
from teachonce.pipeline.storage import Location
from teachonce.stages.planning.planned_encodings import views_to_fit
from teachonce.stages.settings.cache import CacheSettings
from teachonce.storage_schemas.fingerprint import Fingerprint

QUICK = ("--seconds", "0.1", "--threads", "1", "--executor", "serial")


def call(*words: object) -> Any:
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: object) -> str:
    result = call(*words)
    assert result.exit_code in (1, 2), result.output
    return result.stderr.strip().splitlines()[-1]


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files and folders, with their times and content; the folder for scratch files has been used, and is empty."""
    assert list((folder / "scratch").iterdir()) == []
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
        if path.name != "scratch"
    }


@pytest.fixture
def inputs(tmp_path, pictures, picture_shards, tiny_clip_teacher, monkeypatch) -> Path:
    """A folder with shards of 13, a class list, and a place of its own for scratch files."""
    for name in ("scratch", "work"):
        (tmp_path / name).mkdir()
    work = tmp_path / "work"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    shutil.copytree(picture_shards.location.path, work / "shards")
    shutil.copytree(pictures, work / "pictures")
    (work / "classes.txt").write_text("red fox\nblue jay\nhouse cat\n")
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def teacher(tiny_clip_teacher) -> tuple[str, ...]:
    return "--teacher", f"local-dir:{tiny_clip_teacher}", "--precision", "fp32"


def dry_run(teacher, *words: object) -> dict[str, Any]:
    found = run(
        *("cache", "shards", *teacher, "--views", 2, "--batch-size", 8, "--threads", 1, "--executor", "serial"),
        *("--out", "store", "--dry-run", "--json", *words),
    )
    return json.loads(found)  # type: ignore[no-any-return]


@pytest.fixture
def few_seconds(monkeypatch) -> None:
    """`cache --dry-run` has no option for the seconds."""
    from teachonce.stages.settings.plan import PlanSettings

    monkeypatch.setattr(PlanSettings, "seconds", 0.1)
    monkeypatch.setitem(PlanSettings.__init__.__kwdefaults__, "seconds", 0.1)


def test_a_dry_run_writes_nothing_for_a_new_store(inputs, teacher, few_seconds) -> None:
    before = everything(inputs.parent)
    found = dry_run(teacher)
    assert everything(inputs.parent) == before
    assert found["images"]["count"]["value"] == 48
    assert found["images"]["unusable"] == 2
    assert list(found["store"]["arrays"]["embedding"]["shape"]) == [48, 2, 16]
    assert "left" not in found
    assert found["teacher"]["views_per_second_a_worker"]["from"] == "measured"


def test_a_dry_run_of_a_growth_is_refused_and_not_told_to_add_grow(inputs, teacher) -> None:
    words = ["cache", "shards", *teacher, "--views", "4", "--out", "store", "--dry-run", "--grow"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: what a growth takes is not told beforehand: --dry-run, --grow [options-exclude-each-other]. Next: leave one out\n"
    )


def test_a_dry_run_tells_what_is_left_of_a_store_and_changes_nothing(inputs, teacher, few_seconds) -> None:
    how = (*teacher, "--views", 2, "--batch-size", 8, "--threads", 1, "--executor", "serial", "--out", "store")
    run("vectors", *teacher[:2], "--classes", "classes.txt", "--out", "store")
    whole = dry_run(teacher)
    assert "left" not in whole
    run("cache", "shards", *how)
    done = dry_run(teacher)
    assert done["left"] == {"shards": 0, "images": 0, "bytes": {"value": 0.0, "from": done["left"]["bytes"]["from"]}}
    assert done["teacher"]["hours"]["value"] == 0
    receipts = inputs / "store/ledger/cache/receipts"
    gone = sum(o["bytes"] for n in (1, 3) for o in json.loads((receipts / f"00000{n}.json").read_text())["outputs"])
    for number in (1, 3):
        (receipts / f"00000{number}.json").unlink()
    before = everything(inputs.parent)
    half = dry_run(teacher)
    assert everything(inputs.parent) == before
    assert (half["left"]["shards"], half["left"]["images"]) == (2, 13 + 9)
    assert half["left"]["bytes"]["value"] == pytest.approx(gone, rel=0.1)
    assert half["teacher"]["work_hours"]["value"] * 3600 * half["teacher"]["views_per_second_a_worker"][
        "value"
    ] == pytest.approx(2 * (13 + 9))
    assert (
        half["store"]["arrays"].keys()
        == whole["store"]["arrays"].keys()
        == {*("keys", "valid", "view_params", "logits", "logits_max")}
    )


def test_a_dry_run_refuses_what_the_command_refuses(inputs, teacher, few_seconds) -> None:
    how = ("cache", "shards", *teacher, "--batch-size", 8, "--threads", 1, "--executor", "serial", "--out", "store")
    run(*how, "--views", 2)
    before = everything(inputs.parent)
    said = refused(*how, "--views", 3, "--dry-run")
    assert everything(inputs.parent) == before
    assert said == refused(*how, "--views", 3)
    assert said.startswith("Error: store holds the output of another cache") or "field 'views" in said
    (inputs / "other").mkdir()
    (inputs / "other/file.txt").write_text("mine")
    assert "the output folder holds something else" in refused(*how[:-1], "other", "--dry-run")


def test_a_dry_run_in_text_says_what_is_left(inputs, teacher, few_seconds) -> None:
    how = ("cache", "shards", *teacher, "--batch-size", 8, "--threads", 1, "--executor", "serial", "--out", "store")
    run(*how)
    (inputs / "store/ledger/cache/receipts/000002.json").unlink()
    text = run(*how, "--dry-run")
    assert "shards left" in text
    assert "1 of 4" in text
    assert "left to write" in text


def plans(teacher) -> dict[str, tuple[object, ...]]:
    return {
        "shards": ("shards", *teacher, "--views", 2, *QUICK),
        "classes": ("pictures", *teacher, "--classes", "classes.txt", "--targets", "both", "--epochs", 4, *QUICK),
        "drawn": ("--images", 5_000_000, "--mean-kb", 3, *teacher, "--classes", 300, "--views", 20, *QUICK),
        "nothing": (
            *("--images", 123_456_789, "--mean-kb", 110, "--classes", 1000, "--channels", 1024, "--targets", "both"),
            *("--rate", 900, "--views", 4, "--deadline", 100, "--student-rate", 900, "--epochs", 20, "--students", 12),
            *("--price-gpu-hour", 3, "--price-gb-month", 0.02, "--price-requests", 0.005, "--executor", "serial"),
        ),
    }


@pytest.mark.parametrize("name", ["shards", "classes", "drawn", "nothing"])
def test_every_line_fits_and_every_figure_says_where_it_comes_from(inputs, teacher, name) -> None:
    words = plans(teacher)[name]
    text = run("plan", *words)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    for part in ("Corpus", "On disk", "The arrays by encoding", "The teacher"):
        assert f"\n{part}\n" in text
    found = json.loads(run("plan", *words, "--json"))
    assert _bare(found, ()) == []


#: What is no figure: counts that are in the names of things, and what options state.
EXACT = {"objects", "shards", "shard_size", "views", "epochs", "students", "workers", "shape", "chunks", "kl_budget"}


def _bare(value: Any, at: tuple[str, ...]) -> list[str]:
    """Numbers without a `from` beside them."""
    if isinstance(value, dict):
        if "from" in value and "value" in value:
            assert value["from"] in ("counted", "measured", "stated", "table")
            return []
        return [name for key, part in value.items() for name in _bare(part, (*at, key))]
    if isinstance(value, list):
        return [name for part in value for name in _bare(part, at)]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        known = at[-1] in EXACT or at[0] == "break_even" or at[-1].startswith(("bytes_a_", "workers_", "deadline"))
        counted = at[-1] in ("metadata_bytes", "receipt_bytes", "ledger_bytes", "unusable", "images")
        return [] if known or counted else ["/".join(at)]
    return []


def test_a_plan_without_anything_real_states_what_it_was_told(inputs) -> None:
    found = json.loads(run("plan", *plans(())["nothing"], "--json"))
    assert found["teacher"]["views_per_second_a_worker"] == {"value": 900.0, "from": "stated", "how": ""}
    assert found["teacher"]["work_hours"]["value"] == pytest.approx(123_456_789 * 4 / 900 / 3600)
    assert found["break_even"]["break_even_students"] == pytest.approx(0.2)
    assert found["store"]["arrays"]["embedding"]["bytes"]["from"] == "counted"
    assert found["store"]["arrays"]["logits"]["bytes"]["from"] == "table"
    assert found["shards"]["bytes"]["value"] == pytest.approx(123_456_789 * (110_000 + 1536 + 256 + 60), rel=0.01)
    once, hours = found["cost"]["teacher_once"]["value"], found["teacher"]["hours"]["value"]
    assert once == pytest.approx(3 * hours)


def test_several_workers_are_done_sooner(inputs) -> None:
    words = ("plan", "--images", 4000, "--channels", 16, "--rate", 1, "--views", 1, "--executor", "ray", "--json")
    one, four = (json.loads(run(*words, "--workers", n))["teacher"] for n in (1, 4))
    assert (one["hours"]["value"] - four["hours"]["value"]) * 3600 == pytest.approx(3000)


def test_a_students_rate_from_its_log(inputs) -> None:
    ledger = Ledger(Location.of(inputs / "student"), "distill")
    fingerprint = Fingerprint(fields={"settings": {"batch_size": 10, "epochs": 1}})
    ledger.begin(Plan(stage="distill", fingerprint=fingerprint, units=1, rows=1), hint="")
    (inputs / "student/run").mkdir()
    lines = [
        {"step": 5, "samples_per_second": 50.0, "wait_share": 0.0},
        {"step": 10, "samples_per_second": 25.0, "wait_share": 0.5},
    ]
    (inputs / "student/run/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("plan", "--images", 1000, "--channels", 8, "--student-run", "student", "--json", "--executor", "serial")
    # 5 steps in 1 s, then 5 steps in 2 s, half of that waiting: 100 images in 2 s.
    assert json.loads(run(*words))["training"]["images_per_second"] == {"value": 50.0, "from": "measured"}


REFUSED = {
    "nothing": (
        (),
        "Error: nothing to plan for: expected a corpus, or --images N, found neither [option-needs-another]. Next: teachonce plan FOLDER "
        "--teacher …, or teachonce plan --images 1000000 --mean-kb 110 --channels 768",
    ),
    "empty": (
        ("empty", "--channels", 8),
        "Error: no images: empty: expected at least one image file, found none [images-missing]. Next: for a folder of tars, name the "
        "tars: teachonce plan FOLDER/*.tar …",
    ),
    "both": (
        ("shards", "--images", 5, "--channels", 8),
        "Error: --images goes without a corpus: --images [options-exclude-each-other]. Next: leave one out",
    ),
    "no size": (
        ("shards",),
        "Error: the size of a target is not known: --targets embedding: expected --teacher or --channels D, "
        "found neither [option-needs-another]. Next: add --channels D",
    ),
    "tokens": (
        ("shards", "--channels", 8, "--targets", "tokens"),
        "Error: the size of a target is not known: --targets tokens: expected --teacher, found no teacher [option-needs-another]. Next: add "
        "--teacher",
    ),
    "own": (
        ("shards", "--classes", "own"),
        "Error: no teacher whose own classes these are: --classes own: expected --teacher, found none [option-needs-another]. Next: add "
        "--teacher, or give the number of classes",
    ),
    "no class": (("shards", "--classes", 0), "Error: an empty class list: --classes: found 0 [class-list-empty]"),
    "two rates": (
        ("shards", "--channels", 8, "--student-rate", 5, "--student-run", "x"),
        "Error: --student-rate and --student-run exclude each other [options-exclude-each-other]. Next: leave one of them out",
    ),
    "no log": (
        ("shards", "--channels", 8, "--student-run", "pictures"),
        "Error: no log of a training here: pictures: expected a folder that `teachonce distill` wrote, "
        "found a folder of images [training-log-missing]. Next: state the rate: --student-rate IMAGES/S",
    ),
    "deadline": (
        ("--images", 1000, "--channels", 8, "--rate", 1, "--deadline", 0.1),
        "Error: no number of workers meets the deadline: --deadline 0.1: expected at least 0.282 hours: 15 s to start, and "
        "17 min for one shard, found 0.1 hours, for 1 shard [deadline-impossible]. Next: give it more time; or, where shards "
        "are not made yet, a smaller --shard-size",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_planned_is_one_line(inputs, name) -> None:
    (inputs / "empty").mkdir()
    words, expected = REFUSED[name]
    said = refused("plan", *words, "--executor", "serial")
    assert said.replace(f"{inputs}/", "") == expected


@pytest.mark.parametrize(
    "option",
    [
        "--images",
        "--mean-kb",
        "--rate",
        "--deadline",
        "--epochs",
        "--students",
        "--student-rate",
        "--channels",
        "--seconds",
        "--price-gpu-hour",
    ],
)
def test_negative_numbers_are_refused(option) -> None:
    assert f"Invalid value for '{option}'" in refused("plan", "--images", 5, option, "-1")


def test_a_teacher_that_cannot_be_loaded_is_one_line_at_once(inputs) -> None:
    said = refused("plan", "pictures", "--teacher", "timm:no_such_net", *QUICK)
    assert said.startswith("Error: ")
    assert "no_such_net" in said
    assert list((inputs.parent / "scratch").iterdir()) == []


def test_a_corpus_of_no_usable_image_is_one_line(inputs, teacher) -> None:
    (inputs / "bad").mkdir()
    (inputs / "bad/a.jpg").write_bytes(b"no image")
    said = refused("plan", "bad", *teacher, *QUICK)
    assert said.startswith(
        "Error: not one image of the sample can be used: bad: expected at least one usable image, found a.jpg: "
    )
    assert list((inputs.parent / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "views"),
    [
        ({}, 0),
        ({"encoding": "sampled:50"}, 0),
        ({"encoding": "pca:0.5"}, 4096),
        ({"encoding": "embedding=pq:8,logits=int8", "fit_views": 300}, 300),
        ({"max_kl": 0.01}, 4096),
        ({"max_bytes": 100.0}, 4096),
    ],
)
def test_the_teacher_runs_on_as_many_views_as_encodings_are_fitted_to(settings, views) -> None:
    assert views_to_fit(CacheSettings(**settings)) == views


def test_a_budget_is_planned_as_cache_would_choose(inputs, teacher) -> None:
    words = plans(teacher)["shards"]
    found = json.loads(run("plan", *words, "--classes", "classes.txt", "--max-kl", 0.02, "--json"))
    assert found["encoding"].startswith("logits=")
    (note,) = found["notes"]
    assert note.startswith(f"logits in {found['encoding'].removeprefix('logits=')}")
    assert "within 0.02 nats" in note
    cost = found["target_encodings"]["logits"][found["encoding"].removeprefix("logits=")]
    assert cost["kl"]["value"] <= 0.02
    assert found["encodings"][found["encoding"]]["chosen"]
    assert not found["encodings"]["fp16"]["chosen"]


def test_logits_need_class_vectors(inputs, teacher) -> None:
    line = refused("plan", "shards", *teacher, "--targets", "logits")
    assert "--targets logits: expected --classes or --vectors, found neither" in line


def test_what_is_fitted_to_a_teacher_is_not_planned_without_one() -> None:
    words = ("plan", "--images", 1000, "--classes", 100, "--encoding")
    assert json.loads(run(*words, "adaptive:0.9", "--json"))["encoding"] == "logits=adaptive:0.9:31"
    line = refused(*words, "pca:0.5")
    assert "depends on the teacher's outputs, and no teacher runs: --encoding logits=pca:0.5" in line


def test_a_dry_run_of_fitted_encodings_tells_what_the_store_will_have(inputs, teacher) -> None:
    how = ("--targets", "embedding", "--encoding", "pq:4", "--views", 2, "--threads", 1)
    words = ("cache", "shards", *teacher, *how, "--out", "s.zarr", "--executor", "serial")
    before = everything(inputs.parent)
    found = json.loads(run(*words, "--dry-run", "--json"))
    assert everything(inputs.parent) == before
    run(*words)
    real = {path.parts[1]: path.stat().st_size for path in Path("s.zarr").glob("*/c/0/**/0") if path.is_file()}
    arrays = found["store"]["arrays"]
    assert found["encoding"] == "embedding=pq:4"
    assert real["encoding_embedding_codebook"] == arrays["encoding_embedding_codebook"]["bytes"]["value"]
    assert json.loads(run(*words, "--dry-run", "--json"))["left"]["shards"] == 0
