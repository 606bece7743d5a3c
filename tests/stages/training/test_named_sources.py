"""A student of two teachers: the same bytes as of one where both say the same, and what cannot be mixed, or is not read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.distill import plan_distill
from teachonce.stages.distilling.stage import DistillStage
from teachonce.stages.models.class_head import ClassHead
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.students.bundle import load_student
from teachonce.storage_schemas.class_vectors import ClassVectors, write_class_vectors
from teachonce.storage_schemas.errors import InputError, MismatchError, TeachonceError
from teachonce.storage_schemas.target_store import open_root

CPU = Compute(device="cpu", precision="fp32", threads=1)


@pytest.fixture
def plan(taught_store, tmp_path):
    """`plan(also=…, …)`: the stage for a small student on the taught store and others."""

    def make(out: str = "b", recipe: str = "kd", options: dict | None = None, **settings) -> DistillStage:
        return plan_distill(
            str(taught_store.shards.location),
            str(taught_store.location),
            StudentConfig(model="timm:test_vit", size=32),
            out=str(tmp_path / out),
            recipe=recipe,
            options={"epochs": 1, "batch_size": 8, "warmup_epochs": 0, **(options or {})},
            settings=DistillSettings(**settings),
            compute=CPU,
            show_progress=False,
        )

    return make


@pytest.fixture
def other(taught_store, make_store, tmp_path):
    """A teacher of 9 channels with the same classes, or others; or none."""

    def make(names: str | None = "abcdefg", widths: dict | None = None) -> str:
        out = tmp_path / "other.zarr"
        make_store(taught_store.shards, out, also_invalid=(5,), widths=widths or {"embedding": 9})
        if names is not None:
            rng = np.random.default_rng(4)
            vectors = ClassVectors(
                names=tuple(names),
                vectors_CD=rng.normal(size=(len(names), 9)).astype(np.float32),
                bias_C=None,
                logit_scale=1.5,
                normalized=False,
            )
            origin = {"teacher": {"model": "T", "weights_digest": "0123"}, "templates": []}
            write_class_vectors(open_root(str(out), mode="a"), vectors, origin)
        return f"big={out}"

    return make


def run(stage: DistillStage) -> dict[str, torch.Tensor]:
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return safetensors.torch.load_file(f"{stage.out}/model.safetensors")


@pytest.mark.parametrize("mix", ["logits", "probabilities"])
def test_twice_the_same_teacher_is_one(plan, taught_store, mix):
    # Not AdamW: where a gradient is zero but for rounding (keys' biases), it makes full steps of the rounding
    sgd = {"optimizer": "sgd", "lr": 0.05}
    single = plan("one", options=sgd)
    assert "mixture" not in single.identity
    twice = plan("two", options=sgd, also=(f"again={taught_store.location}",), mix=mix, mix_weights=(1.0, 3.0))
    assert twice.pairs.targets == ("logits", "again:logits")
    assert twice.identity["mixture"]["mix"] == mix
    weights, same = run(single), run(twice)
    for name, value in weights.items():
        assert same[name].numpy() == pytest.approx(value.numpy(), abs=1e-5), name


def test_anstores_beside_logits_are_formed_and_mixed(plan, other):
    stage = plan(also=(other(),), mix="logits", mix_weights=(1.0, 3.0))
    assert stage.pairs.targets == ("logits", "big:embedding")
    assert any(note.startswith("beside it ") and note.endswith(": big:embedding") for note in stage.notes)
    found = stage.chosen.teacher_logits(1.0)
    vectors = stage.chosen.mixture.teachers[1].vectors
    batch = {"logits": torch.randn(4, 7), "big:embedding": torch.randn(4, 9)}
    expected = 0.25 * batch["logits"] + 0.75 * ClassHead(vectors)(batch["big:embedding"])
    assert torch.allclose(found(batch), expected, atol=1e-5)
    run(stage)


@pytest.mark.parametrize(
    ("made", "kind", "message"),
    [
        ({"names": None}, InputError, "another store has no class vectors, so its teacher has no logits to mix"),
        ({"names": "abcdefh"}, MismatchError, "class 6: expected 'g', found 'h'"),
        ({"names": "abcdef"}, MismatchError, "class 6: expected 'g', found none: 6 in all"),
        ({"names": "abdcefg"}, MismatchError, "class 2: expected 'c', found 'd'"),
        ({"widths": {"tokens": 4}}, MismatchError, "another store holds neither logits nor embeddings"),
    ],
)
def test_what_cannot_be_mixed(plan, other, made, kind, message):
    with pytest.raises(kind, match=message):
        plan(also=(other(**made),))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix_weights": (1.0, 2.0, 3.0)}, "--mix-weights: expected 2 numbers, that of STORE first, found 1, 2, 3"),
        ({"mix_weights": (1.0, 0.0)}, "--mix-weights: expected more than 0"),
    ],
)
def test_weights_that_cannot_be(plan, other, settings, message):
    with pytest.raises(InputError, match=message):
        plan(also=(other(),), **settings)


@pytest.mark.parametrize("settings", [{"mix": "logits"}, {"mix_weights": (1.0,)}])
def test_one_teacher_is_not_mixed(plan, settings):
    with pytest.raises(InputError, match="nothing is mixed: fewer than two teachers with logits") as error:
        plan(**settings)
    assert isinstance(error.value, TeachonceError)


@pytest.mark.parametrize("targets", ["embedding", "embedding,big:embedding"])
@pytest.mark.parametrize("settings", [{"mix": "logits"}, {"mix_weights": (1.0, 2.0)}])
def test_features_are_not_mixed(plan, other, targets, settings):
    with pytest.raises(InputError) as error:
        plan(also=(other(),), recipe="features", options={"feature_targets": targets}, **settings)
    assert error.value.code == ("other-store-useless" if targets == "embedding" else "option-needs-another")


def test_a_store_that_nothing_is_read_of(plan, other):
    with pytest.raises(InputError) as error:
        plan(also=(other(),), recipe="features", options={"feature_targets": "embedding"})
    assert str(error.value).startswith("recipe features uses nothing of another store: --also big=")
    assert "expected one of big:embedding, found embedding. Next: leave it out" in str(error.value)


def test_each_teachers_embedding_has_a_projector(plan, other, taught_store):
    """The pooled features learn both, standardised; the student answers in the first teacher's scale."""
    names = "embedding,big:embedding"
    options = {"feature_targets": names, "feature_loss": "mse", "standardize": True, "schedule": "constant", "lr": 0.01}
    stage = plan(also=(other(names=None),), recipe="features", options={**options, "epochs": 3})
    assert stage.pairs.targets == ("embedding", "big:embedding")
    assert set(stage.identity["statistics"]) == {"embedding", "big:embedding"}
    own = taught_store.targets["embedding"][taught_store.valid].astype(np.float64).reshape(-1, 6)
    assert stage.statistics["embedding"].std_C == pytest.approx(own.std(axis=0), rel=1e-5)
    weights = run(stage)
    assert weights["levels.0.weight"].shape == (9, 64)
    losses = [json.loads(line)["loss"] for line in Path(f"{stage.out}/run/log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    bundle = load_student(str(stage.out))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    found = bundle.student.outputs(images)
    pooled = bundle.student.backbone(bundle.student.normalize(images))
    assert torch.allclose(found["big:embedding"], bundle.student.levels[0](pooled), atol=1e-5)
    assert torch.allclose(found["embedding"], bundle.student(images), atol=1e-5)
    assert "statistics" not in plan("plain", recipe="features", options={"feature_targets": "embedding"}).identity


def test_a_store_that_is_read_is_no_output(plan, other, tmp_path):
    with pytest.raises(InputError) as error:
        plan(out="other.zarr", also=(other(),))
    assert str(tmp_path / "other.zarr") in str(error.value)


def test_two_stores_of_one_name(plan, other):
    given = other()
    with pytest.raises(InputError, match="two stores have the same name: --also: found big"):
        plan(also=(given, given))


def test_class_vectors_that_nothing_is_read_of(plan, other, taught_store):
    with pytest.raises(InputError) as error:
        plan(
            vectors=str(taught_store.location),
            also=(other(),),
            recipe="features",
            options={"feature_targets": "big:embedding"},
        )
    assert str(error.value) == (
        f"this recipe learns no embedding, so it cannot use class vectors: --vectors {taught_store.location}: "
        "expected `embedding` among its targets, found big:embedding. Next: leave out --vectors"
    )
