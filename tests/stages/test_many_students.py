"""Students that share one pass over the pairs: each ends with the bytes of its own single run."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline.contents import Kind, kind_of
from teachonce.pipeline.storage import Location
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.status import exit_code, folder_status
from teachonce.stages.training.trainer import Trainer

FACTS = (
    "config.json",
    "model.safetensors",
    "class_vectors.safetensors",
    "ledger/distill/receipts/student.json",
    "ledger/distill/plan.json",
)


def facts(bundle: Path) -> dict[str, bytes]:
    """The bundle, its receipt and its plan."""
    return {name: (bundle / name).read_bytes() for name in FACTS}


@pytest.fixture
def distill(taught_store, dropping_clip, tmp_path, monkeypatch) -> Callable[..., Any]:
    """`distill("--out", "x", …)`: the command with recipe kd on the taught store, in tmp_path; its result."""
    monkeypatch.chdir(tmp_path)
    words = ["distill", str(taught_store.shards.location), str(taught_store.location)]
    words += ["--student", f"local-dir:{dropping_clip}", "--recipe", "kd", "--batch-size", "8", "--epochs", "2"]
    words += ["--decode-workers", "0", "--threads", "1"]
    return lambda *more: CliRunner().invoke(main, [*words, *more])


def error_of(result: Any) -> str:
    assert result.exit_code == 1, result.output
    return result.stderr.splitlines()[-1]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Three labelled images."""
    folder = tmp_path / "labelled"
    for name in "abc":
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), name.encode()[0]).save(folder / name / "0.png")
    return folder


def test_each_seed_is_its_own_single_run(distill, monkeypatch, tmp_path) -> None:
    epochs: list[int] = []
    batches = TargetStream.batches

    def counted(self, epoch, first_sample=0):
        epochs.append(epoch)
        return batches(self, epoch, first_sample)

    monkeypatch.setattr(TargetStream, "batches", counted)
    together = distill("--seeds", "1,2,3", "--out", "many", "--json")
    assert together.exit_code == 0, together.output
    assert epochs == [0, 1]  # one pass for three students
    told = json.loads(together.stdout)
    assert {name: one["done_now"] for name, one in told["students"].items()} == dict.fromkeys(
        ("seed-1", "seed-2", "seed-3"), 1
    )
    for seed in "123":
        single = distill("--seed", seed, "--order-seed", "0", "--out", f"own-{seed}")
        assert single.exit_code == 0, single.output
        assert facts(tmp_path / "many" / f"seed-{seed}") == facts(tmp_path / f"own-{seed}")
        assert sorted(p.name for p in (tmp_path / "many" / f"seed-{seed}" / "run").iterdir()) == sorted(
            p.name for p in (tmp_path / f"own-{seed}" / "run").iterdir()
        )
    models = {facts(tmp_path / f"own-{seed}")["model.safetensors"] for seed in "123"}
    assert len(models) == 3
    origin = json.loads((tmp_path / "own-2" / "config.json").read_bytes())["origin"]
    assert (origin["seed"], origin["order_seed"]) == (2, 0)


def test_an_order_seed_that_is_the_seed_changes_nothing(distill, tmp_path) -> None:
    assert distill("--seed", "4", "--out", "plain").exit_code == 0
    assert distill("--seed", "4", "--order-seed", "4", "--out", "given").exit_code == 0
    assert facts(tmp_path / "plain") == facts(tmp_path / "given")
    assert "order_seed" not in json.loads((tmp_path / "plain" / "config.json").read_bytes())["origin"]
    assert distill("--seed", "4", "--order-seed", "5", "--out", "other").exit_code == 0
    assert facts(tmp_path / "plain")["model.safetensors"] != facts(tmp_path / "other")["model.safetensors"]


def test_students_of_a_file(distill, labelled, tiny_clip, tmp_path) -> None:
    """Other recipes, targets, models, lengths; validation, early stopping, moving averages: each is its own single run."""
    students: dict[str, dict[str, Any]] = {
        "plain": {"clip-norm": None},
        "both-targets": {"embedding-loss": "cosine", "ema": 0.9, "accumulate": 2, "clip-norm": 0.5, "seed": 5},
        "long": {"epochs": 4, "validation": str(labelled), "patience": 1, "student": f"local-dir:{tiny_clip}"},
        "prompts": {"recipe": "promptkd", "epochs": 3, "schedule": "constant", "precision": "bf16"},
        "convolutions": {"student": "timm:test_resnet", "student-size": 32, "optimizer": "sgd"},
        "parts": {"layer-decay": 0.5, "freeze": "conv1,ln_pre", "lora-rank": 2, "projector": "classes", "ema": 0.9},
    }
    (tmp_path / "students.yaml").write_text(json.dumps(students))
    result = distill("--students", "students.yaml", "--seed", "3", "--clip-norm", "0.3", "--out", "many")
    assert result.exit_code == 0, result.output
    for name, options in students.items():
        words = ["--order-seed", "3", *(["--seed", "3"] if "seed" not in options else [])]
        words += [] if "clip-norm" in options else ["--clip-norm", "0.3"]
        words += [
            str(word) for option, value in options.items() if value is not None for word in (f"--{option}", value)
        ]
        own = distill(*words, "--out", f"own-{name}")
        assert own.exit_code == 0, own.output
        assert facts(tmp_path / "many" / name) == facts(tmp_path / f"own-{name}"), name
    lines = result.stderr.splitlines()
    assert "distill: long: 45 samples, 5 steps of 8 an epoch, 4 epochs" in lines
    assert sum("records no rendered views" in line for line in lines) == 1  # what is true of all is said once


def test_what_is_done_is_left_alone_whoever_did_it(distill, tmp_path) -> None:
    assert distill("--seed", "2", "--order-seed", "0", "--out", "many/seed-2").exit_code == 0
    # A folder with a student in it is not yet one of students: it is refused rather than taken over.
    assert "[output-holds-other]" in error_of(distill("--seeds", "1,2", "--out", "many"))
    assert distill("--seeds", "1", "--out", "other").exit_code == 0
    assert distill("--seed", "2", "--order-seed", "0", "--out", "other/seed-2").exit_code == 0
    written = (tmp_path / "other" / "seed-2" / "model.safetensors").stat().st_mtime_ns
    again = distill("--seeds", "1,2,3", "--out", "other", "--json")
    assert again.exit_code == 0, again.output
    told = json.loads(again.stdout)["students"]
    assert [(told[name]["done_before"], told[name]["done_now"]) for name in told] == [(1, 0), (1, 0), (0, 1)]
    assert (tmp_path / "other" / "seed-2" / "model.safetensors").stat().st_mtime_ns == written
    single = distill("--seed", "3", "--order-seed", "0", "--out", "other/seed-3")
    assert "1 of 1 unit done, 1 of them before" in single.stderr


def test_one_that_fails_does_not_stop_the_others(distill, monkeypatch, tmp_path) -> None:
    step = Trainer.step

    def broken(self, *given, **named):
        return step(self, *given, **named) * (1 if self.seed != 2 or named["step"] < 6 else torch.nan)

    monkeypatch.setattr(Trainer, "step", broken)
    result = distill("--seeds", "1,2,3", "--out", "many")
    assert error_of(result).startswith(
        "Error: 1 of 3 units of distill failed, the first is seed-2: the loss is not finite: step 7, epoch 2: found nan "
        "[loss-not-finite]. Next: use a smaller --lr"
    )
    assert "Output: many/seed-3" in result.stderr
    status = folder_status("many")
    assert (status["kind"], status["state"], exit_code(status)) == ("folder of students", "failed units", 4)
    assert [(s["folder"], s["done"], s["failed"]) for s in status["stages"]] == [
        ("many/seed-1", 1, 0),
        ("many/seed-2", 0, 1),
        ("many/seed-3", 1, 0),
    ]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert distill("--seeds", "1,2,3", "--out", "many").exit_code == 0
    assert distill("--seed", "2", "--order-seed", "0", "--out", "own").exit_code == 0
    assert facts(tmp_path / "many" / "seed-2") == facts(tmp_path / "own")
    status = folder_status("many")
    assert (status["state"], exit_code(status)) == ("complete", 0)
    assert status["next"] == "teachonce evaluate many/NAME IMAGES"
    assert kind_of(Location.of("many")) == Kind.STUDENTS


def test_where_the_earliest_fails_the_pass_goes_on_from_the_next(distill, monkeypatch, tmp_path) -> None:
    """Student 2 is at step 8, of epoch 1, when student 1 fails in step 2: what lies between is not read."""
    step, spans, stops = Trainer.step, [], set()
    batches = TargetStream.batches

    def stopped(self, *given, **named):
        if (self.seed, named["step"]) in stops:
            raise KeyboardInterrupt if self.seed == 2 else RuntimeError("no such luck")
        return step(self, *given, **named)

    def noted(self, epoch, first_sample=0):
        spans.append((epoch, first_sample))
        return batches(self, epoch, first_sample)

    monkeypatch.setattr(Trainer, "step", stopped)
    monkeypatch.setattr(TargetStream, "batches", noted)
    assert distill("--seeds", "3", "--out", "many").exit_code == 0
    stops = {(2, 9)}
    single = ["--seed", "2", "--order-seed", "0", "--checkpoint-every", "4"]
    assert distill(*single, "--out", "many/seed-2").exit_code == 130
    stops = {(1, 1)}
    spans.clear()
    told = error_of(distill("--seeds", "1,2", "--checkpoint-every", "4", "--out", "many"))
    assert "1 of 2 units of distill failed, the first is seed-1: RuntimeError: no such luck" in told
    assert spans == [(0, 0), (1, 24)]
    assert distill(*single, "--out", "own").exit_code == 0
    assert facts(tmp_path / "many" / "seed-2") == facts(tmp_path / "own")


def test_a_folder_of_students_is_no_student(distill) -> None:
    assert distill("--seeds", "1", "--out", "many").exit_code == 0
    told = error_of(CliRunner().invoke(main, ["evaluate", "many", "photos"]))
    assert "expected a student bundle, found a folder of students" in told


def test_status_while_students_are_trained(distill, monkeypatch) -> None:
    step, seen = Trainer.step, []

    def looked(self, *given, **named):
        if named["step"] == 7 and self.seed == 2:
            seen.append(folder_status("many"))
        return step(self, *given, **named)

    monkeypatch.setattr(Trainer, "step", looked)
    assert distill("--seeds", "1,2", "--out", "many").exit_code == 0
    (status,) = seen
    assert (status["kind"], status["state"], exit_code(status)) == ("folder of students", "units left", 3)
    assert list(status["running"]) == ["many", "many/seed-1", "many/seed-2"]
    assert [(s["folder"], s["left"], s["training"]["step"]) for s in status["stages"]] == [
        ("many/seed-1", 1, 5),
        ("many/seed-2", 1, 5),
    ]


def test_a_pass_whose_stream_breaks_ends_all(distill, monkeypatch) -> None:
    batches = TargetStream.batches

    def cut(self, epoch, first_sample=0):
        yield from itertools.islice(batches(self, epoch, first_sample), 3)
        raise OSError(5, "Input/output error", "tar")

    monkeypatch.setattr(TargetStream, "batches", cut)
    assert "2 of 2 units of distill failed, the first is seed-1" in error_of(distill("--seeds", "1,2", "--out", "many"))


# --- what it refuses


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--seeds", "1,2", "--students", "f.yaml"],
            "--seeds and --students exclude each other [options-exclude-each-other]. Next: give each student of the file its `seed`",
        ),
        (
            ["--seeds", "1,2", "--seed", "1"],
            "--seed and --seeds exclude each other [options-exclude-each-other]. Next: --order-seed is the seed of the order of "
            "pairs, which is the same for all",
        ),
        (["--seeds", "1,2,1"], "a seed is given twice: --seeds: found 1 [given-twice]"),
        (
            ["--seeds", "1,2", "--workers", "2"],
            "several students are trained in one process: --workers [students-in-one-process]. Next: leave it out, or train "
            "each student with a command of its own",
        ),
        (
            ["--seeds", "1,2", "--executor", "ray"],
            "several students are trained in one process: --executor [students-in-one-process]. Next: leave it out, or train "
            "each student with a command of its own",
        ),
        (
            ["--seeds", "1,2", "--compile"],
            "students of one pass cannot be compiled: seed-1, --compile [options-exclude-each-other]. Next: leave out "
            "--compile, or train each with a command of its own",
        ),
    ],
)
def test_seeds_that_cannot_be(distill, words: list[str], text: str, tmp_path) -> None:
    assert error_of(distill(*words, "--out", "many")) == f"Error: {text}"
    assert not [path for path in tmp_path.glob("many/*") if path.name != "ledger"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            "a: {}\nb: {batch-size: 4}",
            "students of one pass must agree in what they see, and where they are computed: b, --batch-size: expected 8 (as a), "
            "found 4 [students-differ]. Next: train b with a command of its own",
        ),
        ("a: {}\nb: {student-size: 64}", "b, --student-size: expected 32 (as a), found 64 [students-differ]"),
        ("a: {}\nb: {views: 2}", "b, --views: expected 3 (as a), found 2 [students-differ]"),
        ("a: {}\nb: {order-seed: 2}", "b, --order-seed: expected 0 (as a), found 2 [students-differ]"),
        ("a: {}\nb: {threads: 2}", "b, --threads: expected 1 (as a), found 2 [students-differ]"),
        (
            "a: {epoch: 2}",
            "a student has no such option: f.yaml, a: found epoch [students-file-option-unknown]. Next: did you mean epochs?",
        ),
        ("a: {out: x}", "a student has no such option: f.yaml, a: found out [students-file-option-unknown]"),
        (
            "a: {epochs: many}",
            "a student's options are wrong: f.yaml, a: found Invalid value for '--epochs': 'many' is not a valid integer range "
            "[students-file-options-wrong]. Next: teachonce distill --help",
        ),
        (
            "a: {recipe: promptkd, embedding-loss: mse}",
            "an option that recipe promptkd does not have: f.yaml, a: --embedding-loss",
        ),
        ("[a, b]", "a file of students is a mapping: f.yaml: found list [students-file-malformed]"),
        ("", "a file of students is a mapping: f.yaml: found NoneType [students-file-malformed]"),
        ("a: [1]", "a student's options are a mapping: f.yaml, a: found [1] [students-file-malformed]"),
        ("../a: {}", "a student's name must be good for a folder: f.yaml: found ../a [students-file-malformed]"),
        ("ledger: {}", "a student's name must be good for a folder: f.yaml: found ledger [students-file-malformed]"),
        ("a: {}\na: {seed: 2}", "not a YAML file: f.yaml: found a stands there twice"),
        ("a: {seed: 1, seed: 2}", "not a YAML file: f.yaml: found seed stands there twice"),
        ("a: {", "not a YAML file: f.yaml"),
    ],
)
def test_files_that_cannot_be(distill, content: str, text: str, tmp_path) -> None:
    (tmp_path / "f.yaml").write_text(content)
    assert text in error_of(distill("--students", "f.yaml", "--out", "many"))


def test_a_run_file_checks_its_students_first(distill, taught_store, dropping_clip, tmp_path) -> None:
    students = tmp_path / "students.yaml"
    about = {"shards": str(taught_store.shards.location), "store": str(taught_store.location), "out": "many"}
    about |= {"student": f"local-dir:{dropping_clip}", "recipe": "kd", "batch-size": 8, "epochs": 2, "threads": 1}
    about |= {"students": "students.yaml", "decode-workers": 0}
    stages = [{"shard": {"corpus": ["."], "out": "made", "executor": "serial"}}, {"distill": about}]
    (tmp_path / "run.yaml").write_text(json.dumps({"stages": stages}))
    for content, text in (
        ("a: {epoch: 2}", "a student has no such option: students.yaml, a: found epoch"),
        (
            "a: {validation: nowhere}",
            "a stage reads what is not there: run.yaml, stage 2 (distill): students.yaml, a: validation",
        ),
    ):
        students.write_text(content)
        assert text in error_of(CliRunner().invoke(main, ["run", "run.yaml"]))
        assert not (tmp_path / "made").exists()
    students.write_text("a: {}\nb: {seed: 1, epochs: 1}")
    (tmp_path / "run.yaml").write_text(json.dumps({"stages": stages[1:]}))
    assert CliRunner().invoke(main, ["run", "run.yaml"]).exit_code == 0
    assert distill("--seed", "1", "--order-seed", "0", "--epochs", "1", "--out", "own").exit_code == 0
    assert facts(tmp_path / "many" / "b") == facts(tmp_path / "own")


def test_no_file(distill, tmp_path) -> None:
    (tmp_path / "students.yaml").write_text("a: {}")
    assert error_of(distill("--students", "student.yaml", "--out", "many")) == (
        "Error: no such file of students: student.yaml [students-file-missing]. Next: did you mean students.yaml?"
    )


def test_a_folder_is_of_one_student_or_of_several(distill) -> None:
    assert distill("--out", "one").exit_code == 0
    assert "the output folder holds something else: one: " in error_of(distill("--seeds", "1", "--out", "one"))
    assert distill("--seeds", "1", "--out", "many").exit_code == 0
    assert error_of(distill("--out", "many")) == (
        "Error: the output folder holds something else: many: expected a folder that is new, empty, or begun by "
        "`teachonce distill`, found a folder of students: seed-1 and 1 more [output-holds-other]. Next: teachonce distill … "
        "--out many-student"
    )


# --- killed and started again


@pytest.fixture(scope="module")
def run(distill_job, taught_store, dropping_clip) -> Callable[..., int]:
    """`run(out, kill=…)`: three students on one pass, or one with `students=None`; the exit code."""
    students = {
        "one": {"seed": 1, "order_seed": 0},
        "two": {"seed": 2, "order_seed": 0, "checkpoint_every": 3},
        "long": {"seed": 1, "order_seed": 0, "options": {"epochs": 3, "batch_size": 8, "ema": 0.9}},
    }

    def go(out: Path, *, kill: tuple[str, int] | None = None, only: str | None = None) -> int:
        job: dict[str, Any] = {
            "shards": str(taught_store.shards.location),
            "store": str(taught_store.location),
            "out": str(out),
            "student": f"local-dir:{dropping_clip}",
            "recipe": "kd",
            "precision": "fp32",
            "checkpoint_every": 2,
            "options": {"epochs": 2, "batch_size": 8},
            "kill": kill,
        }
        return distill_job({**job, **students[only]} if only else {**job, "students": students})

    return go


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    own = tmp_path_factory.mktemp("own")
    for name in ("one", "two", "long"):
        assert run(own / name, only=name) == 0
    return of_all(own)


def of_all(out: Path) -> dict[str, dict[str, bytes]]:
    return {name: facts(out / name) for name in ("one", "two", "long")}


def test_killed_between_the_students_of_a_step(run, undisturbed, tmp_path) -> None:
    """Checkpoints are of other steps than each other's: the earliest leads, the others join."""
    out = tmp_path / "b"
    assert run(out, kill=("step", 20)) == -9
    assert run(out, kill=("step", 4)) == -9
    assert run(out) == 0
    assert of_all(out) == undisturbed


def test_a_single_run_goes_on_from_what_several_began(run, undisturbed, tmp_path) -> None:
    out = tmp_path / "b"
    assert run(out, kill=("step", 20)) == -9
    assert run(out / "two", kill=("step", 2), only="two") == -9
    assert run(out / "one", only="one") == 0
    assert run(out) == 0
    assert of_all(out) == undisturbed


def test_a_signal_lets_all_students_take_the_step_and_save(run, undisturbed, tmp_path) -> None:
    out = tmp_path / "b"
    assert run(out, kill=("SIGTERM", 8)) == 75  # the second student's third step; all take it
    for name in ("one", "two", "long"):
        with safetensors.safe_open(out / name / "run" / "checkpoint.safetensors", "pt") as file:
            assert json.loads(file.metadata()["checkpoint"])["step"] == 3
    assert run(out) == 0
    assert of_all(out) == undisturbed


def test_the_command_says_go_on(distill, monkeypatch, tmp_path) -> None:
    steps: list[int] = []
    step = Trainer.step

    def told(self, *given, **named):
        steps.append(named["step"])
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, *given, **named)

    monkeypatch.setattr(Trainer, "step", told)
    stopped = distill("--seeds", "1,2", "--out", "many", "--grace", "600")
    assert stopped.exit_code == 75, stopped.output
    line = "Stopped by SIGUSR1. What was finished is kept; the same command resumes."
    assert stopped.stderr.splitlines()[-1] == line
    assert steps == [0, 0]
    done = distill("--seeds", "1,2", "--out", "many")
    assert done.exit_code == 0, done.output
    assert steps[2:4] == [1, 1]


@pytest.mark.slow
def test_killed_again_and_again(run, undisturbed, tmp_path) -> None:
    for n, what in enumerate(itertools.cycle(["fsync", "rename", "step"]), start=1):
        code = run(tmp_path / "b", kill=(what, n + n // 2))
        assert code in (0, -9)
        if code == 0:
            break
    assert n > 6
    assert of_all(tmp_path / "b") == undisturbed
    assert not list((tmp_path / "b").rglob("*.tmp"))
