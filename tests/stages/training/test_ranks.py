"""Two ranks train what one process trains: what they exchange, their gradients, whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.distill import plan_distill
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.training.ranks import Ranks, accumulating
from teachonce.storage_schemas.errors import InputError


def test_alone_nothing_is_wrapped_or_exchanged() -> None:
    ranks, module = Ranks.here(), torch.nn.BatchNorm1d(3)
    assert (ranks.rank, ranks.world_size, ranks.is_first) == (0, 1, True)
    assert ranks.wrap(module, torch.device("cpu")) is module
    assert (ranks.gather({"a": 1}), ranks.agree("x"), ranks.any(True), ranks.any(False)) == (
        [{"a": 1}],
        "x",
        True,
        False,
    )
    loss = torch.tensor(2.0, requires_grad=True)
    assert ranks.mean(loss) == 2.0
    assert not ranks.mean(loss).requires_grad
    with accumulating(module):
        pass


def test_what_ranks_tell_each_other(together, tmp_path) -> None:
    assert together("exchange", tmp_path) == [0, 0]
    told = [{"rank": rank, "text": "ä" * 100 * rank, "none": None} for rank in range(2)]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "here": [rank, 2, rank == 0],
            "gathered": told,
            "agreed": told[0],
            "any": [False, True],
        }
        assert load_file(tmp_path / f"{rank}.safetensors")["mean"].tolist() == [1.5, 3.0]


def test_ranks_that_start_from_other_weights_are_refused_on_every_rank(together, tmp_path) -> None:
    assert together("other_weights", tmp_path) == [0, 0]
    lines = {json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)}
    (line,) = lines
    assert line.startswith("the ranks start from different weights of the student: rank 1: expected ")
    assert line.endswith("Next: give every node the same files and the same versions of torch and teachonce")


def options(store: Any, student: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "shards": str(store.shards.location),
        "store": str(store.location),
        "student": student,
        "recipe": "kd",
        "options": {"epochs": 2, "batch_size": 8},
        "seed": 3,
        **changes,
    }


def alone(out: Path, chosen: dict[str, Any]) -> None:
    """The same `distill` in this process."""
    given = dict(chosen)
    own = {name: given.pop(name) for name in DistillSettings.__dataclass_fields__ if name in given}
    stage = plan_distill(
        given.pop("shards"),
        given.pop("store"),
        StudentConfig(**given.pop("student")),
        out=str(out),
        compute=Compute(device="cpu", precision="fp32", threads=1),
        show_progress=False,
        settings=DistillSettings(**own),
        **given,
    )
    run_stage(stage, stage.out, SerialExecutor(), progress=False)


def whole(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """All weights and running statistics as one vector."""
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "run" / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


SMALL = {"epochs": 2, "batch_size": 8, "optimizer": "sgd"}
#: Smooth nets, or small steps: a deep net with ReLUs and batch norm magnifies rounding a hundredfold a step, so that one
#: process that reverses each batch ends 1e-2 from one that does not.
RUNS = {
    "kd": ("local-dir:{tiny_clip}", {"options": {**SMALL, "projector": "mlp", "lr": 0.01}}),
    "kd in parts": (
        "local-dir:{tiny_clip}",
        {"options": {**SMALL, "projector": "mlp", "lr": 0.1, "accumulate": 2, "clip_norm": 1.0, "ema": 0.9}},
    ),
    "kd of a convolutional net": ("timm:test_resnet", {"options": {**SMALL, "lr": 1e-5}}),
    "kd of some layers": (
        "local-dir:{tiny_clip}",
        {
            "options": {
                **SMALL,
                "lr": 0.01,
                "layer_decay": 0.5,
                "freeze": "conv1",
                "lora_rank": 2,
                "projector": "classes",
            }
        },
    ),
    "promptkd": ("local-dir:{tiny_clip}", {"recipe": "promptkd"}),
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """Nine pictures of two of the store's classes."""
    folder, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for index in range(9):
        path = folder / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_train_what_one_process_trains(name, together, taught_store, tiny_clip, labelled, tmp_path) -> None:
    model, changes = RUNS[name]
    if "parts" in name:
        changes = {
            **changes,
            "validation": str(labelled),
        }  # the first rank measures it, and all take its best epoch
    student = {"model": model.format(tiny_clip=tiny_clip), "size": 32 if model.startswith("timm") else None}
    chosen = options(taught_store, student, **changes)  # type: ignore[arg-type]
    alone(tmp_path / "one", chosen)
    assert together("distill", tmp_path / "ranks", out=str(tmp_path / "two"), unit_options=chosen) == [0, 0]
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    # All together: the gradient of a bias before batch norm is nothing but rounding.
    difference = whole(two) - whole(one)
    assert difference.norm() <= 1e-5 * whole(one).norm()
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    receipts = [json.loads((tmp_path / n / "ledger/distill/receipts/student.json").read_text()) for n in ("one", "two")]
    assert receipts[0]["fingerprint"] == receipts[1]["fingerprint"]
    assert receipts[0]["rows"] == receipts[1]["rows"]


@pytest.mark.slow
def test_one_process_goes_on_where_two_ranks_were_stopped(together, taught_store, tiny_clip, tmp_path) -> None:
    model, changes = RUNS["kd"]
    student = {"model": model.format(tiny_clip=tiny_clip)}
    chosen = options(taught_store, student, **changes, checkpoint_every=3)  # type: ignore[arg-type]
    alone(tmp_path / "one", chosen)
    out = tmp_path / "two"
    assert together("distill", tmp_path / "ranks", out=str(out), unit_options=chosen, stop_after=8) == [7, 7]
    alone(out, chosen)
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert (whole(two) - whole(one)).norm() <= 1e-5 * whole(one).norm()
    assert losses(out) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)  # here of single steps too


def test_a_batch_that_cannot_be_shared_out_is_refused_before_anything_starts(taught_store, tiny_clip, tmp_path) -> None:
    config = StudentConfig(model=f"local-dir:{tiny_clip}")
    compute = Compute(device="cpu", precision="fp32", threads=1)
    for accumulate, expected in ((1, 3), (2, 6)):
        with pytest.raises(InputError) as error:
            plan_distill(
                str(taught_store.shards.location),
                str(taught_store.location),
                config,
                out=str(tmp_path / "out"),
                recipe="kd",
                options={"batch_size": 8, "accumulate": accumulate},
                compute=compute,
                workers=3,
                settings=DistillSettings(),
            )
        assert error.value.fields == {
            "code": "batch-not-divisible",
            "where": "--batch-size",
            "expected": f"a multiple of {expected}",
            "found": "8",
        }
