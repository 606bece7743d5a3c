"""`distill` with domains that are left out and drawn evenly, rows held out, and SWAD: what trains, what is stored, and killed runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.distill import plan_distill
from teachonce.stages.many_students import check_common
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.recipes.registry import recipe_named
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.students.bundle import load_student
from teachonce.stages.training.swad import Swad
from teachonce.stages.training.trainer import make_optimizer
from teachonce.storage_schemas.errors import InputError

NOTE = "samples to train on: 2 of each a step: art (8), sketch (5); left out: photo; 4 held out"
CPU = Compute(device="cpu", precision="fp32", threads=1)
DOMAINS = {"per_domain": 2, "steps_per_epoch": 3, "hold_out": 0.2}
SWAD = {**DOMAINS, "select": "swad", "swad_converge": 2, "swad_tolerance": 2, "epochs": 6, "lr": 0.01}


@pytest.fixture
def plan(domain_store, tmp_path):
    def make(*, student="timm:test_resnet", recipe="kd", options=None, out="b", **own):
        return plan_distill(
            str(domain_store.shards.location),
            str(domain_store.location),
            StudentConfig(model=student, size=32),
            out=str(tmp_path / out),
            recipe=recipe,
            options={"epochs": 2, "schedule": "constant", "warmup_epochs": 0, **(options or {})},
            settings=DistillSettings(**own),
            compute=CPU,
            show_progress=False,
        )

    return make


def run(stage):
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return [json.loads(line) for line in (stage.out / "run/log.jsonl").read_bytes().splitlines()]


def test_a_batch_is_so_many_of_each_domain(plan):
    stage = plan(options=DOMAINS, leave_out=("photo",))
    assert (stage.settings.batch_size, stage.samples) == (4, 2 * 3 * 4)
    assert NOTE in stage.notes
    run(stage)
    config = load_student(stage.out).config
    assert config.origin["leave_out"] == ["photo"]
    assert config.origin["validation"]["images"] == "--hold-out 0.2"
    assert config.origin["settings"]["per_domain"] == 2


def test_what_is_held_out_is_what_is_validated(plan, domain_store):
    stage = plan(options=DOMAINS)
    validation = stage._open_validation()
    rows = [picture.file for picture, _ in validation.labelled]
    assert rows == [row for row, held in enumerate(stage.pairs.rows.held_out) if held]
    assert plan(options=DOMAINS, seed=1).identity["validation"] != stage.identity["validation"]
    assert plan(options=DOMAINS, seed=1, order_seed=0).identity["validation"] == stage.identity["validation"]


def test_the_bundle_is_the_average_over_the_valley(plan, monkeypatch):
    """Of the weights after each step, as they pass by."""
    iterates: list[dict[str, torch.Tensor]] = []
    update = Swad.update

    def noting(self):
        iterates.append({name: value.clone() for name, value in self._current.items()})
        update(self)

    monkeypatch.setattr(Swad, "update", noting)
    stage = plan(options=SWAD)
    log = run(stage)
    swad = load_student(stage.out).config.origin["swad"]
    losses = [line["validation_loss"] for line in log]
    assert len(losses) == len(iterates) // 3
    first = next((i for i in range(len(losses) - 1) if losses[i] <= losses[i + 1]), len(losses) - 1)
    assert swad["first"] == first + 1
    valley = iterates[3 * (swad["first"] - 1) : 3 * swad["last"]]
    stored = load_student(stage.out).student.state_dict()
    for name, value in valley[0].items():
        if value.is_floating_point():
            mean = torch.stack([weights[name].double() for weights in valley]).mean(dim=0)
            torch.testing.assert_close(stored[name].double(), mean, rtol=1e-5, atol=1e-6)


def test_training_ends_with_the_valley(plan, monkeypatch):
    from teachonce.stages.training.validation import Measured, Validation

    losses = iter([1.0, 1.1, 9, 9, 9])
    monkeypatch.setattr(Validation, "measure", lambda *given: Measured(0.5, next(losses)))
    stage = plan(options=SWAD)
    assert len(run(stage)) == 4
    swad = load_student(stage.out).config.origin
    assert swad["swad"] == {"first": 1, "last": 2, "threshold": pytest.approx(1.365), "ended": True}
    assert swad["steps"] == 12


def test_frozen_batch_norms_keep_their_averages_and_train_their_weights(plan):
    def norms(student):
        return {
            name: value.clone()
            for name, value in student.backbone.state_dict().items()
            if "bn" in name or "norm" in name
        }

    stage = plan(options={**DOMAINS, "batch_norm": "frozen", "lr": 0.01})
    built = stage.built._built
    before = norms(built.student)
    run(stage)
    after = norms(load_student(stage.out).student)
    averages = {name for name in before if "running" in name}
    assert averages
    assert all(torch.equal(before[name], after[name]) for name in averages)
    assert any(not torch.equal(before[name], after[name]) for name in before.keys() - averages)
    assert stage.identity["settings"]["batch_norm"] == "frozen"


def test_adam_is_adam(plan):
    stage = plan(options={"optimizer": "adam", "batch_size": 8})
    optimizer = make_optimizer(recipe_named("kd"), stage.built.take().student, stage.settings)
    assert type(optimizer) is torch.optim.Adam


@pytest.mark.parametrize(
    ("options", "own", "text"),
    [
        (
            {**DOMAINS, "batch_size": 7},
            {},
            "--per-domain decides how large a batch is: --batch-size: expected 6: 2 of each domain, found 7. "
            "Next: leave out --batch-size",
        ),
        (
            {"steps_per_epoch": 5},
            {},
            "without --per-domain, an epoch is a pass over the corpus: --steps-per-epoch: found 5. "
            "Next: add --per-domain SAMPLES, or leave it out",
        ),
        (
            {"select": "swad", "batch_size": 8},
            {},
            "SWAD needs validation images: --select swad. "
            "Next: add --hold-out 0.2 or --validation IMAGES, or choose --select best",
        ),
        (
            {**SWAD, "ema": 0.9},
            {},
            "SWAD and a moving average exclude each other: --select swad --ema. Next: leave out --ema",
        ),
        (
            {**SWAD, "patience": 2},
            {},
            "SWAD and early stopping exclude each other: --select swad --patience. Next: leave out --patience",
        ),
        (
            DOMAINS,
            {"validation": "x"},
            "--validation and --hold-out exclude each other: --hold-out: found 0.2. Next: leave one of them out",
        ),
        (
            {**DOMAINS, "accumulate": 4},
            {},
            "impossible setting: --batch-size: expected a multiple of 4, the parts of --accumulate, found 6",
        ),
    ],
)
def test_what_cannot_be(plan, options, own, text):
    with pytest.raises(InputError) as error:
        plan(options=options, **own)
    assert str(error.value) == text


def test_students_of_one_pass_agree_in_what_trains(plan):
    stages = {"a": plan(options=DOMAINS), "b": plan(options=DOMAINS, leave_out=("art",), out="c")}
    with pytest.raises(InputError) as error:
        check_common(stages)
    assert str(error.value.where) in ("b, --batch-size", "b, --leave-out")
    check_common({"a": plan(options=DOMAINS), "b": plan(options=SWAD, out="c")})


@pytest.mark.slow
def test_killed_at_any_step_it_ends_with_the_same_bytes(distill_job, domain_store, tmp_path):
    """With SWAD, hold-out and even domains: the averages of a segment, of those that wait, and of the valley come back."""

    def one(out: Path, kill: tuple[str, int] | None = None) -> int:
        return distill_job(
            {
                "shards": str(domain_store.shards.location),
                "store": str(domain_store.location),
                "out": str(out),
                "student": "timm:test_resnet",
                "recipe": "kd",
                "precision": "fp32",
                "checkpoint_every": 1,
                "options": {**SWAD, "warmup_epochs": 0, "schedule": "constant"},
                "kill": kill,
            }
        )

    def facts(out: Path) -> list[bytes]:
        return [(out / name).read_bytes() for name in ("config.json", "model.safetensors")]

    assert one(tmp_path / "undisturbed") == 0
    while one(tmp_path / "killed", ("step", 7)) == -9:
        continue
    assert facts(tmp_path / "killed") == facts(tmp_path / "undisturbed")
