"""`teachonce benchmark vl2v`: one domain left out after the other, measured as by hand, resumed, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev

import pytest
import teachonce
from click.testing import CliRunner
from PIL import Image, ImageOps
from teachonce.cli import main
from teachonce.pipeline.ledger import Ledger
from teachonce.pipeline.storage import Location
from teachonce.stages.demo import images
from teachonce.stages.protocols.domain_sets import DOMAIN_SETS
from teachonce.stages.protocols.domain_settings import DATASETS
from teachonce.stages.students.bundle import load_student

TEACHER = f"local-dir:{Path(teachonce.__file__).parent / 'stages' / 'demo' / 'teacher'}"
CLASSES, DOMAINS = ("red_seven", "blue_two", "green_zero"), ("grey", "plain", "upside")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three domains of coloured digits, eight images of each class."""
    root = tmp_path_factory.mktemp("domains") / "digits"
    for number, name in enumerate(CLASSES):
        painted = images.render("domain", "domain", 24, start=100 * number, classes=[name.replace("_", " ")])
        for index, pixels in enumerate(painted.images_NHWC):
            domain = DOMAINS[index % 3]
            image = Image.fromarray(pixels)
            image = {"grey": ImageOps.grayscale, "plain": Image.Image.copy, "upside": ImageOps.flip}[domain](image)
            path = root / domain / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return root


def benchmark(data, out, *options):
    words = ["benchmark", "vl2v", "--data", str(data), "--out", str(out), "--threads", "1", *options]
    if "--dataset" not in options:
        words += ["--dataset", "folder"]
    if "--teacher" not in options:
        words += ["--teacher", TEACHER, "--student", "timm:test_resnet", "--student-pretrained", "random"]
    small = "--per-domain 2 --student-size 32 --decode-workers 0 --hold-out 0.3"
    words += [
        "--epochs",
        "3",
        "--steps-per-epoch",
        "2",
        "--views",
        "2",
        "--distill-options",
        small,
        "--executor",
        "serial",
    ]
    return CliRunner().invoke(main, words)


def by_hand(bundle: str, folder: Path) -> float:
    """Accuracy of a student on a folder of class folders."""
    student = load_student(bundle)
    right = []
    for path in sorted(folder.glob("*/*.png")):
        found = student.predict(path)
        right.append(found.names[0] == path.parent.name)
    return fmean(right)


@pytest.mark.slow
def test_each_domain_is_left_out_in_turn(data, tmp_path):
    chosen = ("--seeds", "0,1", "--domain", "plain")
    done = benchmark(data, tmp_path / "run", *chosen)
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "run/results.json").read_text())
    assert [row["left_out"] for row in facts["rows"]] == ["plain"]
    for row in facts["rows"]:
        accuracies = [by_hand(run["bundle"], data / row["left_out"]) for run in row["runs"]]
        assert [run["accuracy"] for run in row["runs"]] == accuracies
        assert (row["mean"], row["std"]) == (pytest.approx(fmean(accuracies)), pytest.approx(stdev(accuracies)))
        assert row["images"] == 24
        for run in row["runs"]:
            for stage in (1, 2):
                origin = load_student(run["bundle"].replace("stage-2", f"stage-{stage}")).config.origin
                assert origin["leave_out"] == [row["left_out"]]
                assert origin["settings"]["stage"] == stage
                assert origin["settings"]["batch_size"] == 4  # two of each of two domains
    by_seed = [fmean(row["runs"][seed]["accuracy"] for row in facts["rows"]) for seed in (0, 1)]
    assert facts["average"]["mean"] == pytest.approx(fmean(by_seed))
    passes = facts["teacher_passes"]
    assert (passes["trainings"], passes["passes_saved"]) == (4, 3)
    assert passes["teacher_images"] == 72 * 2
    assert passes["teacher_images_in_the_loop"] == sum(
        4 * stage["steps"] for row in facts["rows"] for run in row["runs"] for stage in run["stages"]
    )
    table = done.stdout
    assert "One pass of the teacher served 4 trainings (domains × seeds × stages): 3 passes saved." in table
    assert (tmp_path / "run/results.md").read_text().startswith("# VL2V-ADiP, folder; teacher teacher;")
    # The prompt of the class vectors is the published one, with spaces for underscores in classes' names.
    assert (tmp_path / "run/templates.txt").read_text() == "a photo of a {}\n"

    # Again: nothing is trained or measured anew, and the table is the same.
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "lock"}
    again = benchmark(data, tmp_path / "run", *chosen)
    assert again.stdout == done.stdout
    kept = [p for p in before if p.name in ("model.safetensors", "results.json", "seed-0.json", "log.jsonl")]
    assert len(kept) > 7
    assert all(p.stat().st_mtime_ns == before[p] for p in kept)


@pytest.mark.slow
def test_one_that_fails_stops_no_other(data, tmp_path):
    blocked = tmp_path / "run/students/timm-test_resnet-random/plain/seed-0-stage-1"
    blocked.mkdir(parents=True)
    note = {"kind": "teachonce benchmark vl2v", "protocol": "leave one domain out"}
    (tmp_path / "run/benchmark.json").write_text(json.dumps(note))
    (blocked / "zarr.json").write_text("{}")
    done = benchmark(
        data, tmp_path / "run", "--seeds", "0", "--domain", "plain", "--domain", "upside", "--student-normalization"
    )
    assert done.exit_code == 1
    facts = json.loads((tmp_path / "run/results.json").read_text())
    assert [row["left_out"] for row in facts["rows"]] == ["upside"]
    assert [failure["what"] for failure in facts["failed"]] == ["plain, seed 0"]
    assert facts["average"] is None
    # The teacher saw images as the student does.
    seen = Ledger(Location.of(tmp_path / "run/targets"), "cache").plan()
    assert seen is not None
    assert seen.fingerprint.fields["teacher"]["preprocess"]["mean"] == [0.485, 0.456, 0.406]
    assert "normalised with ImageNet's mean and deviation" in done.stdout


def test_the_known_data_sets():
    assert tuple(DOMAIN_SETS) == DATASETS
    assert [known.domains for known in DOMAIN_SETS.values()] == [4, 4, 4, 4, 6, None]
    steps = {name: known.epochs * known.steps_per_epoch for name, known in DOMAIN_SETS.items()}
    assert steps == dict.fromkeys(DATASETS, 5000) | {"domainnet": 15_000}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            ["--dataset", "pacs"],
            "not a folder of this data set's domains: {data}: expected 4 folders, one for each domain, found grey, plain, upside "
            "[domain-folder-wrong]. Next: --dataset folder takes any folder with images at DOMAIN/CLASS/IMAGE",
        ),
        (
            ["--domain", "gray"],
            "no such domain: --domain: expected grey, plain, upside, found gray [domain-unknown]. Next: did you mean grey?",
        ),
        (["--seeds", "1,1"], "impossible seeds: --seeds: expected numbers, each once, found 1,1 [setting-impossible]"),
    ],
)
def test_what_cannot_be(data, tmp_path, options, error):
    done = benchmark(data, tmp_path / "run", *options)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == f"Error: {error.format(data=data)}"
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_text_is_refused(data, tmp_path):
    done = benchmark(data, tmp_path / "run", "--teacher", "timm:resnet18")
    assert done.exit_code == 1
    assert "vl2v needs a teacher of images and text" in done.stderr


def test_a_domain_that_lacks_a_class_is_refused_before_anything_runs(data, tmp_path):
    import shutil

    shutil.copytree(data, tmp_path / "data" / "office_home")
    (tmp_path / "data" / "office_home" / "fourth").mkdir()
    done = benchmark(tmp_path / "data", tmp_path / "run", "--dataset", "officehome")
    assert done.stderr.splitlines()[-1] == (
        f"Error: a domain has no folder of a class that other domains have: {tmp_path}/data/office_home/fourth: "
        "expected 3 classes, found no 'blue_two' and 2 more [domain-lacks-class]. "
        "Next: add images of them, or take the class out of all domains"
    )
    assert not (tmp_path / "run").exists()
