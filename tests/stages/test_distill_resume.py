"""Killed with SIGKILL at any moment and started again, `distill` ends with an undisturbed run's bytes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
from PIL import Image

Run = Callable[..., int]


@pytest.fixture(scope="module")
def run(distill_job, taught_store, dropping_clip) -> Run:
    """`run(out, kill=…, …)`: one `distill`."""

    def one(out: Path, *, kill: tuple[str, int] | None = None, options: dict | None = None, **changes: Any) -> int:
        job: dict[str, Any] = {
            "shards": str(taught_store.shards.location),
            "store": str(taught_store.location),
            "out": str(out),
            "student": f"local-dir:{dropping_clip}",
            "recipe": "kd",
            "precision": "fp32",
            "seed": 1,
            "checkpoint_every": 2,
            "options": {"epochs": 3, "batch_size": 8, **(options or {})},
            "kill": kill,
        }
        return distill_job(job | changes)

    return one


def facts(bundle: Path) -> dict[str, bytes]:
    """The bundle and its receipt: all that must not depend on how it came about."""
    names = [
        "config.json",
        "model.safetensors",
        "class_vectors.safetensors",
        "ledger/distill/receipts/student.json",
        "ledger/distill/plan.json",
    ]
    return {name: (bundle / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "b"
    assert run(out) == 0
    return facts(out)


def test_a_run_can_be_repeated_with_other_decode_workers(run, undisturbed, tmp_path) -> None:
    for workers in (1, 2):
        out = tmp_path / str(workers)
        assert run(out, decode_workers=workers, checkpoint_every=None) == 0
        assert facts(out) == undisturbed
    assert run(tmp_path / "other", seed=2) == 0
    assert facts(tmp_path / "other")["model.safetensors"] != undisturbed["model.safetensors"]


@pytest.mark.slow
def test_killed_again_and_again(run, undisturbed, tmp_path) -> None:
    """At its first write, before its second rename, after its third step, …: a little later each time."""
    for n, what in enumerate(itertools.cycle(["fsync", "rename", "step"]), start=1):
        # starting processes takes a second, so only two of the runs have them
        code = run(tmp_path / "b", kill=(what, n), decode_workers={3: 1, 6: 2}.get(n, 0))
        assert code in (0, -9)
        if code == 0:
            break
        assert not (tmp_path / "b" / "ledger" / "distill" / "receipts" / "student.json").exists()
    assert n > 6
    assert facts(tmp_path / "b") == undisturbed
    assert not list((tmp_path / "b").rglob("*.tmp"))


@pytest.mark.slow
def test_killed_at_each_write_of_the_bundle(run, undisturbed, tmp_path) -> None:
    """Training is done; every write from the last checkpoint to the receipt is interrupted in turn."""
    out = tmp_path / "b"
    assert run(out, kill=("step", 15)) == -9
    for n in itertools.count(3):  # one step is left: the rewritten log, the last checkpoint, three files, receipts
        code = run(out, kill=("fsync", n))
        if code == 0:
            break
    assert n >= 8
    assert facts(out) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"recipe": "promptkd"},
        {"options": {"optimizer": "sgd", "embedding_loss": "cosine"}},
        {"student": "timm:test_efficientnet", "precision": "bf16"},
        {"options": {"ema": 0.9, "accumulate": 2, "clip_norm": 0.5, "patience": 1}, "validation": True},
        {"options": {"layer_decay": 0.5, "freeze": "conv1,ln_pre", "lora_rank": 2, "projector": "classes", "ema": 0.9}},
    ],
    ids=["bf16", "promptkd", "sgd", "convolutions", "options", "parts"],
)
def test_other_kinds_of_runs_resume_too(run, tmp_path, changes: dict[str, Any]) -> None:
    if "validation" in changes:
        labelled = tmp_path / "labelled"
        for name in "abc":
            (labelled / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), name.encode()[0]).save(labelled / name / "0.png")
        changes = {**changes, "validation": str(labelled)}
    assert run(tmp_path / "whole", **changes) == 0
    assert run(tmp_path / "b", kill=("step", 3), **changes) == -9
    assert run(tmp_path / "b", kill=("rename", 5), **changes) == -9
    assert run(tmp_path / "b", **changes) == 0
    assert facts(tmp_path / "b") == facts(tmp_path / "whole")


@pytest.mark.parametrize(("number", "at"), [("SIGTERM", 1), ("SIGUSR1", 4), ("SIGTERM", 7)])
def test_a_signal_lets_the_step_end_and_the_next_run_goes_on_behind_it(run, undisturbed, tmp_path, number, at) -> None:
    out = tmp_path / "b"
    assert run(out, kill=(number, at), checkpoint_every=None) == 75
    assert steps_saved(out) == at
    assert not (out / "ledger" / "distill" / "failures" / "student.json").exists()
    assert run(out, kill=("step", 1), checkpoint_every=None) == -9  # it goes on with one step, not with those before
    assert run(out, checkpoint_every=None) == 0
    assert facts(out) == undisturbed


def test_a_signal_in_the_last_step_changes_nothing(run, undisturbed, tmp_path) -> None:
    assert run(tmp_path / "b", kill=("SIGTERM", 15)) == 0
    assert facts(tmp_path / "b") == undisturbed


def steps_saved(out: Path) -> int:
    """Steps done by the checkpoint."""
    with safetensors.safe_open(out / "run" / "checkpoint.safetensors", "pt") as file:
        return int(json.loads(file.metadata()["checkpoint"])["step"])


def test_the_log_tells_each_step_once(run, undisturbed, tmp_path) -> None:
    out = tmp_path / "b"
    assert run(out, kill=("step", 9)) == -9
    log = out / "run" / "log.jsonl"
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [2, 4, 5, 6, 8]
    with log.open("a") as file:
        file.write('{"step": 9, "epoch": 1}\n{"step": 1')  # what a killed run may leave
    assert run(out) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(0 <= line["wait_share"] <= 1 and line["samples_per_second"] > 0 for line in lines)
    assert lines[-1]["lr"] < lines[3]["lr"]
    assert facts(out) == undisturbed
    assert list((out / "run" / "tensorboard").glob("events.*"))


def test_no_teacher_is_loaded(distill_job, taught_store, tiny_clip, tmp_path) -> None:
    """The store's teacher never existed: its name is all there is."""
    shards, store = str(taught_store.shards.location), str(taught_store.location)
    options = ["--recipe", "promptkd", "--epochs", "1", "--decode-workers", "0", "--threads", "1"]
    student, out = ["--student", f"local-dir:{tiny_clip}"], ["--out", str(tmp_path / "b")]
    job = {
        "command": ["distill", shards, store, *student, *options, *out],
        "report": str(tmp_path / "report"),
    }
    assert distill_job(job) == 0
    found = json.loads((tmp_path / "report").read_text())
    assert found["teachers"] == []
    ours = (str(tmp_path), str(tiny_clip), shards)
    assert [path for path in found["weights"] if not path.startswith(ours)] == []
