"""`teachonce distill` as a whole: what it writes, what it refuses, and that the teacher stays away."""

from __future__ import annotations

import ast
import json
import pickle
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import zarr
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.distill import plan_distill
from teachonce.stages.distilling.notes import note_on_reuse
from teachonce.stages.distilling.stage import DistillStage
from teachonce.stages.models.compute import Compute, training_compute
from teachonce.stages.models.settings import ComputeSettings
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.recipes.registry import recipe_named
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.students.bundle import load_student
from teachonce.stages.training.trainer import Trainer
from teachonce.storage_schemas.class_vectors import ClassVectors, read_class_vectors, write_class_vectors
from teachonce.storage_schemas.errors import (
    DamagedError,
    IncompleteError,
    InputError,
    MismatchError,
    TeachonceError,
    UnitsFailed,
)
from teachonce.storage_schemas.store_description import StoreDescription
from teachonce.storage_schemas.target_store import open_root

CHECKOUT = Path(__file__).parents[2]
CPU = Compute(device="cpu", precision="fp32", threads=1)


@pytest.fixture
def plan(taught_store, tiny_clip, tmp_path):
    """`plan(…)`: the stage for the tiny CLIP on the taught store; every argument can be replaced."""

    def make(student: str | None = None, *, options: dict | None = None, **changes: Any) -> DistillStage:
        arguments: dict[str, Any] = {
            "shards": str(taught_store.shards.location),
            "store": str(taught_store.location),
            "recipe": "kd",
            "config": StudentConfig(model=student or f"local-dir:{tiny_clip}"),
            "out": str(tmp_path / "b"),
            "options": {"epochs": 2, "batch_size": 8, **(options or {})},
            "compute": CPU,
            "show_progress": False,
        }
        own = {name: changes.pop(name) for name in DistillSettings.__dataclass_fields__ if name in changes}
        return plan_distill(**(arguments | changes), settings=DistillSettings(**own))

    return make


def run(stage: DistillStage) -> None:
    run_stage(stage, stage.out, SerialExecutor(), progress=False)


def message(error: pytest.ExceptionInfo[TeachonceError]) -> str:
    return str(error.value)


def failure(stage: DistillStage) -> str:
    """Why the one unit of a stage failed."""
    with pytest.raises(UnitsFailed) as error:
        run(stage)
    return str(error.value.where)


# --- what it writes


def test_the_command(taught_store, tiny_clip, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        "distill",
        str(taught_store.shards.location),
        str(taught_store.location),
        "--student",
        f"local-dir:{tiny_clip}",
        "--recipe",
        "promptkd",
        "--out",
        "b",
        "--epochs",
        "4",
        "--decode-workers",
        "0",
        "--threads",
        "1",
    ]
    first = CliRunner().invoke(main, [*command, "--json"])
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["done_now"] == 1
    told = first.stderr.splitlines()
    assert "records no rendered views" in told.pop(3)  # the fixture's store is not one that `cache` wrote
    assert re.fullmatch(
        rf"distill: student local-dir:{tiny_clip}: weights those of local-dir:tiny, digest [0-9a-f]{{12}}, GELU, 32x32 pixels, "
        "bilinear, crop center 1, mean 0.4/0.5/0.6, std 0.2/0.3/0.4",
        told.pop(0),
    )
    assert told[:3] == [
        "distill: 45,594 parameters, 474 of them trained by recipe promptkd",
        "distill: 45 samples, 5 steps of 8 an epoch, 4 epochs",
        "distill: prompts go 3 layers deep, not 9: the student has no more blocks",
    ]
    assert told[-1] == (
        "distill: 3 views were used in 4 epochs, each about 1.33 times; --reuse-views leaves out this note"
    )
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "class_vectors.safetensors",
        "config.json",
        "ledger",
        "model.safetensors",
        "run",
    ]
    assert sorted(p.name for p in (tmp_path / "b" / "run").iterdir()) == ["log.jsonl", "tensorboard"]
    before = (tmp_path / "b" / "model.safetensors").stat().st_mtime_ns
    again = CliRunner().invoke(main, [*command, "--reuse-views"])
    assert again.exit_code == 0
    assert "were used in" not in again.stderr
    assert "1 of 1 unit done, 1 of them before" in again.stderr
    assert (tmp_path / "b" / "model.safetensors").stat().st_mtime_ns == before


def test_the_bundle_says_how_it_came_about(plan, taught_store) -> None:
    stage = plan("timm:test_resnet", config=StudentConfig(model="timm:test_resnet", size=32), seed=5)
    run(stage)
    config = json.loads((stage.out / "config.json").read_bytes())
    corpus = taught_store.shards.corpus
    assert config["student"] == {"family": "timm", "name": "test_resnet", "kwargs": {}}
    assert config["class_names"] == list("abcdefg")
    origin = config["origin"]
    assert origin["corpus"] == {"name": "pictures", "id": corpus.corpus_id, "samples": 45}
    assert origin["recipe"] == "kd"
    assert origin["settings"]["lr"] == 1e-3
    assert origin["compute"] == {"device": "cpu", "precision": "fp32", "threads": 1}
    assert (origin["seed"], origin["steps"], origin["student_weights"]) == (5, 10, "random, seed 5")
    assert origin["store"]["teacher"] == {"model": "T", "weights_digest": "0123"}
    assert str(stage.out) not in json.dumps(config)
    loaded = load_student(stage.out)
    with torch.no_grad():
        embedding = loaded.student(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).numpy()
    assert np.allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)
    assert loaded.vectors.logits(embedding).shape == (2, 7)
    assert loaded.vectors.logit_scale == 20.0  # kd: the teacher's


def test_promptkd_leaves_the_students_weights_alone(plan, tiny_clip) -> None:
    stage = plan(recipe="promptkd")
    run(stage)
    original = safetensors.torch.load_file(tiny_clip / "open_clip_model.safetensors")
    trained = safetensors.torch.load_file(stage.out.path / "model.safetensors")
    tower = {n.removeprefix("backbone.tower."): v for n, v in trained.items() if n.startswith("backbone.tower.")}
    assert {f"visual.{n}" for n in tower} == {n for n in original if n.startswith("visual.")}
    assert all(torch.equal(value, original[f"visual.{name}"]) for name, value in tower.items())
    assert trained["backbone.prompts_LPD"].shape == (3, 4, 32)
    assert load_student(stage.out).vectors.logit_scale == pytest.approx(10.0)  # the student's own


def test_a_student_learns_what_the_store_says(plan) -> None:
    stage = plan("timm:test_resnet", config=StudentConfig(model="timm:test_resnet", size=32), options={"epochs": 12})
    run(stage)
    losses = [json.loads(line)["loss"] for line in (stage.out / "run" / "log.jsonl").read_bytes().splitlines()]
    assert losses[-1] < 0.8 * losses[0]


def test_prompts_of_length_zero_train_the_projector_alone(plan) -> None:
    stage = plan(recipe="promptkd", options={"prompt_length": 0, "epochs": 1})
    run(stage)
    assert safetensors.torch.load_file(stage.out.path / "model.safetensors")["backbone.prompts_LPD"].numel() == 0
    load_student(stage.out)


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_it_writes_the_same_bytes(plan, cluster, tmp_path) -> None:
    from teachonce.pipeline.executors.connection import disconnect
    from teachonce.pipeline.executors.ray import RayExecutor

    here, there = plan(out=str(tmp_path / "here")), plan(out=str(tmp_path / "there"))
    run(here)
    try:
        run_stage(there, there.out, RayExecutor(workers=1, address=cluster.address), progress=False)
    finally:
        disconnect()
    for name in ("config.json", "model.safetensors", "class_vectors.safetensors"):
        assert (here.out / name).read_bytes() == (there.out / name).read_bytes()


# --- the teacher stays away


def test_no_module_of_distill_imports_a_teacher() -> None:
    stages = CHECKOUT / "stages"
    files = [stages / "distill.py"]
    for room in ("models", "students", "recipes", "training", "pairs", "distilling"):
        files += stages.glob(f"{room}/*.py")
    assert len(files) > 14
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            assert not [name for name in names if "teacher" in name.lower()], file


def test_one_view_was_used_and_several_were() -> None:
    settings = recipe_named("kd").defaults.override("kd", {"epochs": 6})
    notes = [note_on_reuse(SimpleNamespace(num_views=views), settings) for views in (1, 2, 6)]  # type: ignore[arg-type]
    end = "; --reuse-views leaves out this note"
    assert notes == [
        f"1 view was used in 6 epochs, each about 6 times{end}",
        f"2 views were used in 6 epochs, each about 3 times{end}",
        None,
    ]


# --- what it refuses


def test_a_folder_of_another_run(plan) -> None:
    run(plan())
    with pytest.raises(MismatchError) as error:
        run(plan(seed=3))
    assert "holds the output of another distill" in message(error)
    assert (
        "field 'seed' (and 1 more field): expected 3 (this command), found 0 (the folder). Next: use the options of the first run"
        in message(error)
    )
    with pytest.raises(MismatchError) as error:
        run(plan(options={"lr": 0.1}))
    assert (error.value.code, str(error.value.expected), str(error.value.found)) == (
        "output-other-settings",
        "0.1 (this command)",
        "0.001 (the folder)",
    )
    assert str(error.value.where).endswith("field 'settings.lr'")


def lose_plan(out: Location) -> None:
    """The folder stays known as `distill`'s own."""
    (out / "ledger").remove_folder()
    (out / "ledger" / "distill").make_dir()


def test_a_checkpoint_of_another_run(plan) -> None:
    stage = plan()
    run(stage)
    lose_plan(stage.out)
    checkpoint = stage.out / "run" / "checkpoint.safetensors"
    assert failure(plan(options={"temperature": 3.0})) == (
        f"a checkpoint of another run: {checkpoint}: "
        "field 'settings.temperature': expected 3.0 (this run), found 1.0 (the checkpoint). "
        "Next: use the options of the run that wrote it, or another --out"
    )
    lose_plan(stage.out)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    assert failure(plan(out=str(stage.out.path))).startswith(
        f"not a checkpoint of a training run: {checkpoint}: found "
    )


def test_a_loss_that_is_not_finite(plan, monkeypatch) -> None:
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda *a, step_=step, **k: step_(*a, **k) * (k["step"] != 7 or torch.nan))
    stage = plan()
    assert failure(stage) == (
        "the loss is not finite: step 8, epoch 2: found nan. Next: use a smaller --lr, longer "
        "--warmup-epochs or --precision fp32, and another --out"
    )
    monkeypatch.undo()
    run(stage)  # the last checkpoint is from before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_its_processes_end_with_it(plan, monkeypatch, tmp_path) -> None:
    """Those that prepare batches, whether it ends well, fails, or its student cannot be built."""

    def children() -> set[int]:
        below = Path("/proc/self/task").glob("*/children")
        return {int(pid) for file in below for pid in file.read_text().split()}

    before, seen, step = children(), set(), Trainer.step
    stage = plan(compute=replace(CPU, decode_workers=2))

    def stepping(*given, **named):
        seen.update(children() - before)
        return step(*given, **named) * (torch.nan if named["step"] == 4 else 1)

    with monkeypatch.context() as failing:
        failing.setattr(Trainer, "step", stepping)
        assert "the loss is not finite" in failure(stage)
    assert len(seen) == 1  # it has started the others
    assert children() == before
    run(stage)
    assert children() == before
    other = replace(stage, out=Location.of(tmp_path / "other"), config=StudentConfig(model="timm:no_such_model"))
    with pytest.raises(InputError):
        run(other)
    assert children() == before


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        (
            {"recipe": "magic"},
            InputError,
            "unknown recipe: --recipe: expected kd or promptkd or features or vl2v or reverse-distillation or s3a or affinity, found magic",
        ),
        (
            {"options": {"batch_size": 46}},
            InputError,
            "a batch is larger than the corpus, and a last, shorter batch is dropped: --batch-size: "
            "expected at most 45, found 46",
        ),
        (
            {"shards": "nowhere"},
            InputError,
            "no shards here: nowhere: expected a folder of shards, found nothing. Next: teachonce shard CORPUS --out nowhere",
        ),
        (
            {"store": "nowhere"},
            InputError,
            "no target store here: nowhere: expected a target store, found nothing. Next: teachonce cache SHARDS --teacher … "
            "--out nowhere",
        ),
        (
            {"student": "timm:test_vit", "recipe": "promptkd"},
            InputError,
            "recipe promptkd keeps the student's weights as they are, so it needs good ones: timm:test_vit",
        ),
        (
            {"config": StudentConfig(model="timm:test_vit", pretrained="random"), "recipe": "promptkd"},
            InputError,
            "this student cannot take visual prompts: --student: expected an open_clip vision transformer "
            "that pools its class token, found an image tower of type Eva",
        ),
        (
            {"options": {"optimizer": "lion"}},
            InputError,
            "impossible setting: --optimizer: expected sgd, adam, adamw, found lion",
        ),
        (
            {"options": {"schedule": "steps"}},
            InputError,
            "impossible setting: --schedule: expected cosine, coop",
        ),
        (
            {"options": {"embedding_loss": "cube"}},
            InputError,
            "impossible setting: --embedding-loss: expected none, cosine, mse, found cube",
        ),
        (
            {"options": {"projector": "none"}},
            InputError,
            "the student's features need a projector to the teacher's width: --projector none: expected 6 "
            "channels, found 5. Next: --projector linear",
        ),
    ],
)
def test_what_is_known_before_training(plan, changes: dict, kind: type, text: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as error:
        plan(**changes)
    assert message(error).startswith(text.replace("Eva", type_of_test_vit()))  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()


def type_of_test_vit() -> str:
    import timm

    return type(timm.create_model("test_vit")).__name__


def test_no_device(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError) as error:
        training_compute(ComputeSettings(device="cuda"))
    assert (error.value.code, str(error.value.where)) == ("cuda-missing", "--device cuda")
    assert str(error.value.hint).startswith("use --device cpu")
    chosen = ComputeSettings(threads=3, decode_workers=0)
    assert training_compute(chosen) == Compute(device="cpu", precision="fp32", threads=3)
    assert training_compute(ComputeSettings(precision="bf16", threads=3)).precision == "bf16"
    assert training_compute(ComputeSettings(device="cuda", threads=1), elsewhere=True).precision == "bf16"


def test_a_store_that_is_not_ready(plan, make_store, make_shards, picture_shards, pictures, tmp_path) -> None:
    known = {"teacher": {"model": "T", "weights_digest": "0123"}}
    make_store(picture_shards, tmp_path / "bare", description=known)
    with pytest.raises(IncompleteError) as bare:
        plan(store=str(tmp_path / "bare"))
    assert message(bare).startswith("the store has no class vectors: ")
    open_root(str(tmp_path / "empty"), mode="a")
    with pytest.raises(IncompleteError) as error:
        plan(store=str(tmp_path / "empty"))
    assert error.value.code == "store-without-targets"


@pytest.fixture
def copied_store(taught_store, tmp_path) -> Path:
    return shutil.copytree(taught_store.location.path, tmp_path / "copy.zarr")


def test_an_unfinished_store(plan, copied_store) -> None:
    (copied_store / "ledger" / "cache" / "receipts" / "000002.json").unlink()
    with pytest.raises(IncompleteError) as error:
        plan(store=str(copied_store))
    assert message(error).startswith("cache has not finished: ")
    assert message(error).endswith("found 3 of 4 units. Next: run the same `teachonce cache` command again")


def test_a_store_of_another_corpus(plan, make_shards, pictures, tmp_path) -> None:
    other = shutil.copytree(pictures, tmp_path / "other")
    (other / "red fox" / "00.png").unlink()
    shards = make_shards(other, tmp_path / "shards")
    with pytest.raises(MismatchError) as error:
        plan(shards=str(shards.location))
    assert error.value.code == "store-other-corpus"
    assert "field 'corpus_id'" in str(error.value.where)


def other_vectors(store: Path, weights: str = "0123", width: int = 6) -> ClassVectors:
    """Write other class vectors into a store."""
    rng = np.random.default_rng(8)
    vectors = ClassVectors(
        names=("p", "q", "r"),
        vectors_CD=rng.normal(size=(3, width)).astype(np.float32),
        bias_C=None,
        logit_scale=5.0,
        normalized=True,
    )
    origin = {"teacher": {"model": "U", "weights_digest": weights}, "templates": []}
    write_class_vectors(open_root(str(store), mode="a"), vectors, origin)
    return vectors


def test_class_vectors_of_another_store(plan, tmp_path) -> None:
    vectors = other_vectors(tmp_path / "more")
    stage = plan(vectors=str(tmp_path / "more"))
    assert stage.pairs.targets == ("embedding",)
    run(stage)
    assert load_student(stage.out).vectors.digest == vectors.digest
    other_vectors(tmp_path / "foreign", weights="4567")
    with pytest.raises(MismatchError) as error:
        plan(vectors=str(tmp_path / "foreign"))
    assert "the class vectors are another teacher's than the cached targets: " in message(error)
    assert "field 'teacher.weights': expected T 0123 (the cached targets), found U 4567 (the class vectors)" in message(
        error
    )
    other_vectors(tmp_path / "wide", width=9)
    with pytest.raises(MismatchError) as error:
        plan(vectors=str(tmp_path / "wide"))
    assert (error.value.code, str(error.value.expected), str(error.value.found)) == (
        "vectors-other-width",
        "6 channels (the embeddings)",
        "9 (the class vectors)",
    )


def keep_logits(root: zarr.Group) -> None:
    """Let the store speak of logits alone."""
    recorded = StoreDescription.read(root, "here")
    targets = tuple(target for target in recorded.spec.targets if target.name == "logits")
    replace(recorded, spec=replace(recorded.spec, targets=targets)).write(root)


def test_a_class_list_that_changed_after_the_logits(
    plan, copied_store, make_store, picture_shards, taught_store
) -> None:
    root = open_root(str(copied_store), mode="a")
    before = read_class_vectors(root, where=copied_store)
    after = other_vectors(copied_store)
    assert plan(store=str(copied_store)).pairs.targets == ("embedding",)  # any class list can be served
    keep_logits(root)
    with pytest.raises(MismatchError) as error:
        plan(store=str(copied_store))
    assert message(error).startswith("the cached logits were formed with other class vectors: ")
    assert (
        f"field 'class_vectors': expected {before.digest} (the cached logits), found {after.digest} (these class vectors)"
        in message(error)
    )


def test_embeddings_that_a_loss_needs_must_be_cached(plan, copied_store) -> None:
    root = open_root(str(copied_store), mode="a")
    keep_logits(root)
    assert plan(store=str(copied_store)).pairs.targets == ("logits",)
    with pytest.raises(InputError) as error:
        plan(store=str(copied_store), options={"embedding_loss": "cosine"})
    assert (error.value.code, error.value.what) == (
        "target-not-in-store",
        "the store holds no target 'embedding'",
    )


def test_other_weights_on_the_machine_that_trains(plan, tiny_clip, tmp_path) -> None:
    moving = shutil.copytree(tiny_clip, tmp_path / "moving")
    stage = plan(f"local-dir:{moving}")
    state = safetensors.torch.load_file(moving / "open_clip_model.safetensors")
    state["visual.proj"] += 1
    safetensors.torch.save_file(state, moving / "open_clip_model.safetensors")
    with pytest.raises(MismatchError) as error:
        pickle.loads(pickle.dumps(stage)).open()  # as it comes to another machine
    assert error.value.code == "student-weights-differ-here"


def test_a_damaged_checkpoint_says_what_to_do(plan) -> None:
    stage = plan()
    lose_plan(stage.out)
    (stage.out / "run").make_dir()
    (stage.out / "run" / "checkpoint.safetensors").write_bytes(b"nonsense")
    assert "Next: restore it from a copy, or train from the start with another --out" in failure(stage)
    (stage.out / "config.json").write_bytes(b"{}")
    with pytest.raises(DamagedError) as error:
        load_student(Location.of(stage.out))
    assert (error.value.code, error.value.what, str(error.value.expected), str(error.value.found)) == (
        "config-malformed",
        "not a student bundle",
        "kind: student bundle",
        "kind: None",
    )
