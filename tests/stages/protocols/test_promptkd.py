"""Whole benchmarks on miniatures: the numbers are those of a plain loop, one teacher serves all, a second call does nothing."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline.ledger import Ledger
from teachonce.pipeline.storage import Location
from teachonce.stages.students.bundle import load_student
from teachonce.storage_schemas.errors import with_code

pytestmark = pytest.mark.slow

BOTH = ("student", "teacher")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, benchmark) -> tuple[Path, Result]:
    """base2novel on two data sets, with two students and two seeds."""
    out = tmp_path_factory.mktemp("whole") / "run"
    result = benchmark(out, "--protocol", "base2novel", "--datasets", "dtd,oxford_pets", students=BOTH)
    assert result.exit_code == 0, result.stderr
    return out, result


def facts_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_bytes())


def commands_of(result: Result) -> list[str]:
    return [line.removeprefix("$ teachonce ") for line in result.stderr.splitlines() if line.startswith("$ ")]


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def measure(bundle: Path, data: Path, dataset: str, split_file: str) -> tuple[float, float, float]:
    """Base, novel and overall accuracy of a bundle on the test images, one after another."""
    loaded = load_student(str(bundle))
    entries = json.loads((data / dataset / split_file).read_text())["test"]
    num_classes = 1 + max(label for _, label, _ in entries)
    num_base = (num_classes + 1) // 2
    right: dict[str, list[bool]] = {"base": [], "novel": [], "all": []}
    for path, label, _ in entries:
        with Image.open(data / dataset / "images" / path) as image:
            assert image.size == (loaded.preprocess.size,) * 2  # so that no resampling is needed
            pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy()
        with torch.inference_mode():
            embedding = loaded.student(torch.from_numpy(pixels)[None])[0].numpy()
        logits = loaded.vectors.vectors_CD @ embedding
        side = range(num_base) if label < num_base else range(num_base, num_classes)
        right["base" if label < num_base else "novel"].append(max(side, key=lambda c: logits[c]) == label)
        right["all"].append(max(range(num_classes), key=lambda c: logits[c]) == label)
    base, novel, every = (sum(right[name]) / len(right[name]) for name in ("base", "novel", "all"))
    return base, novel, every


FILES = {"oxford_pets": "split_zhou_OxfordPets.json", "dtd": "split_zhou_DescribableTextures.json"}


def test_the_table_is_what_a_plain_loop_measures(whole, data) -> None:
    out, result = whole
    facts = facts_of(out)
    assert [(r["dataset"], r["student"]) for r in facts["rows"]] == [
        (name, student) for name in ("oxford_pets", "dtd") for student in BOTH
    ]
    by_seed: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in facts["rows"]:
        measured = []
        for seed in (1, 2):
            bundle = out / row["dataset"] / "students" / f"{row['student']}-{seed}"
            base, novel, _ = measure(bundle, data, row["dataset"], FILES[row["dataset"]])
            measured.append((base, novel, 2 * base * novel / (base + novel)))
            by_seed.setdefault((row["student"], seed), []).append((base, novel))
        for name, values in zip(("base", "novel", "harmonic_mean"), zip(*measured, strict=True), strict=True):
            assert row[name]["mean"] == pytest.approx(statistics.mean(values)), (row["dataset"], name)
            assert row[name]["std"] == pytest.approx(statistics.stdev(values))
        text = " ".join(result.stdout.split())
        mean, std = statistics.mean(v[2] for v in measured), statistics.stdev(v[2] for v in measured)
        assert f"{100 * mean:.2f} ± {100 * std:.2f}" in text
    for row in facts["averages"]:
        means = []
        for seed in (1, 2):
            base, novel = (statistics.mean(v) for v in zip(*by_seed[row["student"], seed], strict=True))
            means.append(2 * base * novel / (base + novel))
        assert row["datasets"] == 2
        assert row["harmonic_mean"]["mean"] == pytest.approx(statistics.mean(means))
        assert row["harmonic_mean"]["std"] == pytest.approx(statistics.stdev(means))
    # Better than guessing among three classes, or the numbers above would mean little.
    assert min(row["base"]["mean"] for row in facts["rows"]) > 0.6


def test_published_figures_stand_beside_them(whole) -> None:
    out, result = whole
    rows = {row["dataset"]: row for row in facts_of(out)["rows"]}
    assert rows["dtd"]["published"] == {"base": 0.8584, "novel": 0.7137, "harmonic_mean": 0.7794}
    lines = result.stdout.splitlines()
    assert lines[0] == "PromptKD, base-to-novel; teacher teacher; seeds 1, 2"
    assert lines[1] == (
        "Each student is that of the epoch with the best accuracy of base classes on the validation split. "
        "The paper's were selected on the test images."
    )
    head = "data set student base novel HM paper: base novel HM teacher: base novel HM"
    assert " ".join(lines[4].split()) == head
    assert "  96.30  98.01  97.15  " in next(line for line in lines if "oxford_pets" in line)
    average = next(line for line in lines if "average of 2" in line)
    published = [(96.30 + 85.84) / 2, (98.01 + 71.37) / 2]
    published.append(2 * published[0] * published[1] / sum(published))
    assert "  ".join(f"{value:.2f}" for value in published) in average


def test_the_teachers_row_is_what_evaluate_would_say_of_its_store(whole) -> None:
    out, _ = whole
    row = facts_of(out)["rows"][-1]["teacher"]
    assert row["harmonic_mean"] == pytest.approx(2 * row["base"] * row["novel"] / (row["base"] + row["novel"]))
    words = [
        "evaluate",
        str(out / "dtd/students/student-1"),
        str(out / "dtd/test-shards"),
        "--store",
        str(out / "dtd/test-targets"),
        "--json",
    ]
    told = CliRunner().invoke(main, words)
    assert json.loads(told.stdout)["agreement"]["images"] == 40
    assert row["base"] > 0.8
    assert row["novel"] > 0.8


def test_one_teacher_serves_all_students_and_seeds(whole) -> None:
    out, result = whole
    commands = commands_of(result)
    names = [command.split()[0] for command in commands]
    teacher = ["pretrain", "shard", "vectors", "cache", "shard", "vectors", "cache"]
    assert names == [*teacher, *["distill", "evaluate"] * 4] * 2
    for name in FILES:
        store = Ledger(Location.of(out / name / "targets"), "cache").plan()
        assert store is not None
        for bundle in (out / name / "students").iterdir():
            trained = Ledger(Location.of(bundle), "distill").plan()
            assert trained is not None
            assert trained.fingerprint.fields["store"] == store.fingerprint.digest
    assert sorted(p.name for p in (out / "dtd/students").iterdir()) == [
        "student-1",
        "student-2",
        "teacher-1",
        "teacher-2",
    ]


def test_commands_are_the_papers(whole) -> None:
    _, result = whole
    commands = [command for command in commands_of(result) if "/dtd/" in command]
    assert "--base-classes @half --shots 4 --seed 1 " in commands[0]
    assert "coop:dtd/val=" in commands[2]
    assert "--check coop:dtd/val=" in commands[2]
    distill = next(command for command in commands if command.startswith("distill"))
    for words in (
        "--prompt-depth 9 --loss-weight 200 --epochs 3 --reuse-views --seed 1 ",
        "--validation coop:dtd/val=",
        "--validation-by base ",
        "--batch-size 12",
    ):
        assert words in distill
    pets = next(c for c in commands_of(result) if c.startswith("distill") and "/oxford_pets/" in c)
    assert "--loss-weight 1000" in pets


def test_costs_are_those_of_the_ledgers(whole) -> None:
    out, result = whole
    costs = facts_of(out)["costs"]["dtd"]
    cache, vectors = (Ledger(Location.of(out / "dtd/targets"), stage) for stage in ("cache", "vectors"))
    images, text = cache.timings()["forward"], vectors.timings()["forward"]
    assert (costs["image_seconds"], costs["text_seconds"]) == (images, text)
    assert (costs["samples"], costs["views"], costs["epochs"], costs["steps"]) == (60, 2, 3, 3 * 5)
    online = 3 * 60 * (images / 120) + 15 * text
    assert costs["predicted_teacher_online_seconds"] == pytest.approx(online)
    assert costs["break_even_students"] == pytest.approx((images + text) / online)
    assert len(costs["student_seconds"]) == 4
    student = sum(costs["student_seconds"])
    assert costs["predicted_speed_up"] == pytest.approx((4 * online + student) / (images + text + student))
    assert "Seconds are CPU worker seconds. The text and image towers ran once, for all runs." in result.stdout
    assert "* Predicted from the measured seconds" in result.stdout


def test_a_second_call_does_nothing_and_prints_the_same(whole, benchmark) -> None:
    out, first = whole
    before = state(out)
    second = benchmark(out, "--protocol", "base2novel", "--datasets", "dtd,oxford_pets", students=BOTH)
    assert (second.exit_code, second.stdout) == (0, first.stdout)
    assert state(out) == before
    assert "evaluate:" not in second.stderr


def test_the_page_holds_the_same_table(whole) -> None:
    out, first = whole
    page = (out / "results.md").read_text()
    assert "\n\\* Predicted from the measured seconds" in page
    assert page.startswith("# PromptKD, base-to-novel; teacher teacher; seeds 1, 2\n\nEach student is ")
    rows = [line for line in page.splitlines() if line.startswith(("| oxford_pets", "| dtd", "| average"))]
    assert len(rows) == 4 + 2 + 2  # accuracy, averages, costs
    cells = [cell.strip() for cell in rows[0].split("|")[1:-1]]
    assert "  ".join(cells[2:5]).split() == first.stdout.splitlines()[5].split()[2:11]


def test_another_seed_and_the_json_use_what_is_there(whole, benchmark, tmp_path) -> None:
    shutil.copytree(whole[0], tmp_path / "run")
    result = benchmark(tmp_path / "run", "--protocol", "base2novel", "--datasets", "dtd", "--seeds", "2", "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts == facts_of(tmp_path / "run")
    assert [row["seeds"] for row in facts["rows"]] == [[2]]
    assert facts["rows"][0]["base"]["std"] is None
    assert facts["averages"] == []
    assert " ± —" in (tmp_path / "run/results.md").read_text()


def test_another_protocol_in_the_folder_is_refused(whole, benchmark) -> None:
    out, _ = whole
    result = benchmark(out, "--protocol", "cross-dataset", "--datasets", "dtd")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: the folder holds another benchmark: {out}/benchmark.json: expected cross-dataset (this command), "
        "found base2novel (the folder) [benchmark-other]. "
        "Next: give another --out\n"
    )


def test_selection_on_test_images_lies_apart_and_says_so(whole, benchmark, tmp_path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    before = state(out / "dtd/students")
    words = ("--protocol", "base2novel", "--datasets", "dtd", "--seeds", "1", "--select-on-test")
    result = benchmark(out, *words)
    assert result.exit_code == 0, result.stderr
    distill = next(c for c in commands_of(result) if c.startswith("distill"))
    assert "--validation coop:dtd/test=" in distill
    assert "--validation-by harmonic-mean" in distill
    assert "/dtd/students-selected-on-test/student-1 " in distill
    assert state(out / "dtd/students") == before
    lines = result.stdout.splitlines()
    assert lines[0] == "PromptKD, base-to-novel; teacher teacher; seeds 1 SELECTED ON TEST IMAGES"
    assert lines[1] == (
        "SELECTED ON THE TEST IMAGES (--select-on-test): the epoch with the best harmonic mean there, as the authors' code "
        "does. This is optimistic; it serves the comparison with the paper only."
    )
    facts = facts_of(out)
    assert facts["selected_on_test"] is True
    (run,) = facts["rows"][0]["runs"]
    assert run["selected"]["accuracy"] == pytest.approx(run["harmonic_mean"])


def test_a_data_set_that_fails_does_not_stop_the_others(benchmark, data, tmp_path) -> None:
    mixed = tmp_path / "data"
    for name in FILES:
        shutil.copytree(data / name, mixed / name)
    trained = {path for path, _, _ in json.loads((mixed / "oxford_pets" / FILES["oxford_pets"]).read_text())["train"]}
    for path in trained:
        (mixed / "oxford_pets/images" / path).write_bytes(b"no image")
    tested = json.loads((mixed / "dtd" / FILES["dtd"]).read_text())["test"]
    (mixed / "dtd/images" / tested[0][0]).write_bytes(b"no image")
    out = tmp_path / "run"
    words = ("--protocol", "base2novel", "--data", str(mixed), "--seeds", "1")
    result = benchmark(out, *words)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == (
        f"benchmark: left out, for they are not in {mixed}: imagenet, caltech101, stanford_cars, oxford_flowers, food101, "
        "fgvc_aircraft, sun397, eurosat, ucf101"
    )
    facts = facts_of(out)
    (row,) = facts["rows"]
    assert (row["dataset"], row["test_images"], row["unusable_test_images"]) == ("dtd", 39, 1)
    assert "dtd: test images that could not be used: 1." in result.stdout
    evaluate = ["evaluate", str(out / "dtd/students/student-1"), str(out / "dtd/test-shards"), "--json"]
    facts_there = json.loads(CliRunner().invoke(main, evaluate).stdout)["base_novel"]
    assert row["base"]["mean"] == facts_there["base"]["rate"]
    assert 0.8 < row["teacher"]["base"] <= 1
    (failure,) = facts["failed"]
    assert (failure["dataset"], failure["what"]) == ("oxford_pets", "teacher")
    assert f"benchmark: oxford_pets (teacher) failed: {with_code(failure['error'], failure['code'])}" in result.stderr
    told = result.stdout[result.stdout.index("FAILED") :]
    assert failure["error"] in told
    # Mended, the same command does what is left.
    for path in trained:
        shutil.copy(data / "oxford_pets/images" / path, mixed / "oxford_pets/images" / path)
    again = benchmark(out, *words)
    assert again.exit_code == 0, again.stderr
    assert [row["dataset"] for row in facts_of(out)["rows"]] == ["oxford_pets", "dtd"]
    assert "FAILED" not in again.stdout


def test_a_student_that_fails_does_not_stop_the_others(whole, benchmark, tmp_path) -> None:
    shutil.copytree(whole[0], tmp_path / "run")
    words = (
        "--protocol",
        "base2novel",
        "--datasets",
        "dtd",
        "--distill-options",
        "--decode-workers 0 --lr 0.1",
    )
    result = benchmark(tmp_path / "run", *words, "--seeds", "1,3")
    assert result.exit_code == 1
    facts = facts_of(tmp_path / "run")
    (failure,) = facts["failed"]
    assert (failure["dataset"], failure["what"]) == ("dtd", "student, seed 1")
    assert "holds the output of another distill" in failure["error"]
    assert [row["seeds"] for row in facts["rows"]] == [[3]]
    assert "dtd, student: seeds 3 only." in result.stdout
    assert len(facts["costs"]["dtd"]["student_seconds"]) == 1


def test_imagenet_has_no_validation_split(benchmark, tmp_path) -> None:
    result = benchmark(tmp_path, "--protocol", "base2novel", "--datasets", "imagenet", "--seeds", "1")
    assert result.exit_code == 0, result.stderr
    commands = commands_of(result)
    assert "--check coop:imagenet/train=" in next(c for c in commands if c.startswith("vectors"))
    assert "--validation" not in next(c for c in commands if c.startswith("distill"))
    assert "; the last epoch for imagenet, without a validation split." in result.stdout
    assert facts_of(tmp_path)["rows"][0]["runs"][0]["selected"] is None


def test_cross_dataset(benchmark, data, tmp_path) -> None:
    out = tmp_path / "run"
    result = benchmark(out, "--protocol", "cross-dataset", "--datasets", "oxford_pets,dtd")
    assert result.exit_code == 0, result.stderr
    commands = commands_of(result)
    teacher = ["shard", "vectors", "cache", "shard", "vectors", "cache"]
    assert [c.split()[0] for c in commands] == ["pretrain", *[*teacher, *["distill", "evaluate"] * 2] * 2]
    assert commands[0].startswith("pretrain coop:imagenet/train=")
    assert "--base-classes" not in commands[0]
    assert " --vision-depth 9 --text-depth 9 " in commands[0]
    prompts = f"--teacher teachonce:{out}/imagenet/prompts "
    assert all(prompts in c for c in commands if c.split()[0] in ("vectors", "cache"))
    distill = next(c for c in commands if c.startswith("distill") and "/dtd/" in c)
    for words in ("--prompt-depth 3 --loss-weight 1000 ", "--validation coop:dtd/val="):
        assert words in distill
    assert "--validation-by" not in distill
    facts = facts_of(out)
    for row in facts["rows"]:
        values = [
            measure(out / row["dataset"] / "students" / f"student-{seed}", data, row["dataset"], FILES[row["dataset"]])[
                2
            ]
            for seed in (1, 2)
        ]
        assert row["accuracy"]["mean"] == pytest.approx(statistics.mean(values))
        assert row["accuracy"]["std"] == pytest.approx(statistics.stdev(values))
    assert {row["dataset"]: row["published"]["accuracy"] for row in facts["rows"]} == {
        "oxford_pets": 0.9159,
        "dtd": 0.5508,
    }
    assert facts["averages"][0]["published"]["accuracy"] == pytest.approx((0.9159 + 0.5508) / 2)
    assert facts["shared_pretrain_seconds"] > 0
    assert "Prompts for all data sets: " in result.stdout
    # Prompts that are there already are used as they are.
    given = benchmark(
        tmp_path / "given",
        "--protocol",
        "cross-dataset",
        "--datasets",
        "dtd",
        "--seeds",
        "1",
        "--prompts",
        f"{out}/imagenet/prompts",
    )
    assert given.exit_code == 0, given.stderr
    assert commands_of(given)[0].startswith("shard ")
    assert f"--teacher teachonce:{out}/imagenet/prompts --teacher-backbone local-dir:" in given.stderr
    assert (tmp_path / "given/dtd/targets/zarr.json").exists()
    same = [Ledger(Location.of(folder / "dtd/targets"), "cache").plan() for folder in (out, tmp_path / "given")]
    assert same[0] == same[1]
