"""The recipe `features`: losses and student maps against plain computations, students without classes, what is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import zarr
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.cache import plan_cache
from teachonce.stages.distill import plan_distill
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.recipes.recipe import LossInputs
from teachonce.stages.recipes.registry import recipe_named
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.students.bundle import load_student
from teachonce.stages.teachers import TeacherConfig, load_teacher
from teachonce.stages.training.trainer import Trainer
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import IncompleteError, InputError, MismatchError

FP32 = Compute(device="cpu", precision="fp32", threads=1)
TEACHER = TeacherConfig(model="timm:test_vit", pretrained="random", size=48)
RESNET = StudentConfig(model="timm:test_resnet", pretrained="random", size=64)
VIT = StudentConfig(model="timm:test_vit", pretrained="random", size=48)


def run(stage, out) -> None:
    run_stage(stage, out, SerialExecutor(), progress=False)


@pytest.fixture(scope="module")
def store(picture_shards, tmp_path_factory):
    """Embedding, tokens and two maps of a vision transformer on a grid of 3 × 3, for two views each; class vectors."""
    out = tmp_path_factory.mktemp("features") / "s.zarr"
    views = ViewSpec(kind="random_resized_crop", count=2, seed=3)
    stage = plan_cache(
        str(picture_shards.location),
        TEACHER,
        out=str(out),
        views=views,
        settings=CacheSettings(
            targets="embedding,tokens,features.blocks.1,features.blocks.4", encoding="fp16", batch_size=8
        ),
        compute=FP32,
    )
    run(stage, stage.store)
    return out


def planned(picture_shards, store, out, config=RESNET, **options):
    defaults = {"epochs": 4, "batch_size": 8, "warmup_epochs": 0, "lr": 3e-3}
    more = {name: options.pop(name) for name in ("vectors", "validation") if name in options}
    return plan_distill(
        str(picture_shards.location),
        str(store),
        config,
        out=str(out),
        recipe="features",
        compute=FP32,
        settings=DistillSettings(seed=1, **more),
        options=defaults | options,
        show_progress=False,
    )


def losses(out) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "run/log.jsonl").read_text().splitlines()]


def distances(student: np.ndarray, teacher: np.ndarray, kind: str) -> float:
    """Mean distance over samples and places, of arrays (N, …) with channels last."""
    student, teacher = student.astype(np.float64), teacher.astype(np.float64)
    if kind == "cosine":
        dot = (student * teacher).sum(-1)
        return float((1 - dot / np.linalg.norm(student, axis=-1) / np.linalg.norm(teacher, axis=-1)).mean())
    difference = np.abs(student - teacher)
    if kind == "mse":
        return float((difference**2).mean())
    return float(np.where(difference < 1, difference**2 / 2, difference - 0.5).mean())


@pytest.mark.parametrize("kind", ["cosine", "mse", "smooth-l1"])
def test_the_loss_is_the_distance_at_each_place(kind):
    recipe, generator = recipe_named("features"), torch.Generator().manual_seed(2)
    shapes = {"embedding": (4, 6), "tokens": (4, 9, 5), "features.a": (4, 5, 3, 3)}
    student, teacher = (
        {name: torch.randn(shape, generator=generator) * 2 for name, shape in shapes.items()} for _ in range(2)
    )
    settings = recipe.defaults.override("features", {"feature_loss": kind})
    expected = 0.0
    for name in shapes:
        sides = [side[name].numpy() for side in (student, teacher)]
        if name == "features.a":
            sides = [side.transpose(0, 2, 3, 1) for side in sides]
        expected += distances(*sides, kind)  # type: ignore[arg-type,call-arg]
    found = float(recipe.loss(LossInputs(student=student, teacher=teacher), settings))
    assert found == pytest.approx(expected, rel=1e-5)


def by_hand(built, shards, store, *, kind: str, epochs: int, lr: float) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Steps on embedding, tokens and a map, from timm's own network, projectors as matrices, and the numbers in the store."""
    start = {name: value.clone() for name, value in built.student.state_dict().items()}
    net = timm.create_model("test_vit", num_classes=0, img_size=64).train()
    net.load_state_dict({n.removeprefix("backbone."): v for n, v in start.items() if n.startswith("backbone.")})
    matrices = [torch.nn.Parameter(start[f"{n}.weight"].flatten(1).clone()) for n in PROJECTORS_BY_TARGET.values()]
    biases = [torch.nn.Parameter(start[f"{n}.bias"].clone()) for n in PROJECTORS_BY_TARGET.values()]
    parameters = [*net.parameters(), *matrices, *biases]
    decayed = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05}
    optimizer = torch.optim.AdamW([decayed, {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (built.backbone.preprocess.mean, built.backbone.preprocess.std))
    root = zarr.open_group(str(store), mode="r")
    losses: list[float] = []
    arrays = {name: root[name][:].astype(np.float32) for name in PROJECTORS_BY_TARGET}
    with TargetStream(shards, str(store), image_size=64, batch_size=8, seed=1, targets=("embedding",)) as stream:
        steps = epochs * len(stream)
        for epoch in range(epochs):
            for batch in stream.batches(epoch):
                optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = (
                    lr * (1 + math.cos(math.pi * len(losses) / steps)) / 2
                )
                x = (batch.images_NCHW / 255 - mean) / std
                x = net.norm_pre(net._pos_embed(net.patch_embed(x)))
                blocks = [x := block(x) for block in net.blocks]
                last = net.norm(x)
                places = (tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for tokens in (last, blocks[3]))
                grids = (net.pool(last)[:, :, None, None], *map(thirds, places))
                loss = torch.zeros(())
                for name, grid, matrix, bias in zip(arrays, grids, matrices, biases, strict=True):
                    own = torch.einsum("oc,ncyx->nyxo", matrix, grid) + bias
                    taught = torch.from_numpy(arrays[name][batch.rows_N.numpy(), epoch % 2])
                    taught = taught.permute(0, 2, 3, 1) if taught.ndim == 4 else taught
                    own = own.reshape(taught.shape)
                    if kind == "cosine":
                        dot = (own * taught).sum(-1)
                        loss = loss + 1 - (dot / own.square().sum(-1).sqrt() / taught.square().sum(-1).sqrt()).mean()
                    else:
                        off = (own - taught).abs()
                        loss = loss + torch.where(off < 1, off * off / 2, off - 0.5).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    ended = {f"backbone.{name}": value for name, value in net.state_dict().items()}
    for name, matrix, bias in zip(PROJECTORS_BY_TARGET.values(), matrices, biases, strict=True):
        ended[f"{name}.weight"] = matrix.detach().reshape(start[f"{name}.weight"].shape)
        ended[f"{name}.bias"] = bias.detach()
    return losses, ended


#: The student's projectors, by the target that each is for.
PROJECTORS_BY_TARGET = {
    "embedding": "projector",
    "tokens": "levels.0.project",
    "features.blocks.1": "levels.1.project",
}


def thirds(map_NCYX: torch.Tensor) -> torch.Tensor:
    """On a grid of 3 × 3: means over thirds of the sides, rounded outwards."""
    side = map_NCYX.shape[2]
    edges = [(i * side // 3, -(-(i + 1) * side // 3)) for i in range(3)]
    rows = [torch.stack([map_NCYX[:, :, a:b, c:d].mean((2, 3)) for c, d in edges], -1) for a, b in edges]
    return torch.stack(rows, -2)


@pytest.mark.parametrize("kind", ["cosine", "smooth-l1"])
def test_ten_steps_are_those_of_a_loop_by_hand(picture_shards, store, tmp_path, monkeypatch, kind):
    """Losses and projectors, over both views."""
    options = {
        "feature_targets": ",".join(PROJECTORS_BY_TARGET),
        "student_layers": "tokens,features.blocks.3",
        "feature_loss": kind,
        "epochs": 2,
    }
    config = replace(VIT, size=64)  # smooth, so that rounding stays small
    start = planned(picture_shards, store, tmp_path / "start", config, **options).open().built
    expected, ended = by_hand(start, picture_shards, store, kind=kind, epochs=2, lr=3e-3)
    stage = planned(picture_shards, store, tmp_path / "out", config, **options)
    found_losses, step = [], Trainer.step

    def recorded(*args, **kwargs) -> torch.Tensor:
        found_losses.append(step(*args, **kwargs))
        return found_losses[-1]

    monkeypatch.setattr(Trainer, "step", recorded)
    run(stage, stage.out)
    assert len(expected) >= 10
    assert [float(loss) for loss in found_losses] == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]
    state = load_student(stage.out).student.state_dict()
    assert set(state) == set(ended)
    for name, value in ended.items():
        if not name.startswith("backbone"):  # where a gradient is nothing but rounding, AdamW makes steps of it
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("layer", "width"), [("features.layer2", 48), ("features.layer3", 192), ("tokens", 96)])
def test_a_students_level_is_its_map_on_the_teachers_grid_through_a_projector(
    picture_shards, store, tmp_path, layer, width
):
    """64 pixels give maps of 8 × 8, 4 × 4 and 2 × 2 places; the teacher's grid has 3 × 3."""
    stage = planned(picture_shards, store, tmp_path / "out", feature_targets="features.blocks.4", student_layers=layer)
    built = stage.open().built
    student, images = built.student.eval(), torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    found = student.outputs(images)
    model, x = student.backbone, student.normalize(images)
    x = model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(x))))))
    if layer != "features.layer2":
        x = model.layer3(x)
    if layer == "tokens":
        x = model.layer4(x)
    assert x.shape[1] == width
    if x.shape[2] >= 3:
        edges = [(i * x.shape[2] // 3, -(-(i + 1) * x.shape[2] // 3)) for i in range(3)]
        x = torch.stack([torch.stack([x[:, :, a:b, c:d].mean((2, 3)) for c, d in edges], -1) for a, b in edges], -2)
    else:
        x = torch.nn.functional.interpolate(x, (3, 3), mode="bilinear", align_corners=False)
    projector = student.levels[0].project
    weight, bias = projector.weight[:, :, 0, 0], projector.bias
    expected = torch.einsum("oc,nchw->nohw", weight, x) + bias[:, None, None]
    assert torch.allclose(found["features.blocks.4"], expected, atol=1e-4, rtol=1e-4)
    assert torch.allclose(found["embedding"], student(images), atol=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "mse", "smooth-l1"])
@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_students_come_nearer_to_the_teachers_maps(picture_shards, store, tmp_path, config, kind):
    out = tmp_path / "student"
    stage = planned(picture_shards, store, out, config, feature_loss=kind, feature_targets="tokens,features.blocks.1")
    run(stage, stage.out)
    found = losses(out)
    assert found[-1] < 0.9 * found[0]
    loaded = load_student(str(out))
    assert loaded.class_vectors is None
    assert sorted(f.name for f in out.iterdir() if f.is_file()) == ["config.json", "model.safetensors"]
    assert json.loads((out / "config.json").read_text())["schema_version"] == 2
    images = torch.zeros(2, 3, loaded.preprocess.size, loaded.preprocess.size, dtype=torch.uint8)
    outputs = loaded.student.outputs(images)
    assert outputs["tokens"].shape == (2, 9, 64)
    assert outputs["features.blocks.1"].shape == (2, 64, 3, 3)
    assert repr(loaded).startswith(f"LoadedStudent({config.model.removeprefix('timm:')!r}, no classes, width ")


def test_the_same_view_reaches_both_sides(picture_shards, store, tmp_path):
    """A student that is the teacher, and sees what it saw, is at no distance from it: boxes and mirrors are the same."""
    weights = tmp_path / "weights.safetensors"
    state = load_teacher(TEACHER)._model.state_dict()  # type: ignore[attr-defined]
    safetensors.torch.save_file({n: v.contiguous() for n, v in state.items()}, weights)
    same = replace(VIT, pretrained=str(weights))
    stage = planned(
        picture_shards,
        store,
        tmp_path / "s",
        same,
        feature_targets="tokens",
        student_layers="tokens",
        projector="none",
        feature_loss="mse",
        lr=1e-9,
        epochs=2,
    )
    run(stage, stage.out)
    assert max(losses(tmp_path / "s")) < 1e-4  # what fp16 costs


def test_a_student_of_maps_alone_says_what_it_lacks(picture_shards, store, pictures, tmp_path):
    stage = planned(picture_shards, store, tmp_path / "s", feature_targets="tokens", epochs=1)
    run(stage, stage.out)
    for command in (
        ["predict", str(tmp_path / "s"), str(next(pictures.rglob("*.png")))],
        ["evaluate", str(tmp_path / "s"), str(pictures)],
    ):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 1
        assert "this student has no class vectors, so it tells no classes: test_resnet" in done.output
        assert "found recipe features, targets tokens" in done.output


def test_with_the_embedding_a_student_has_the_stores_classes(picture_shards, store, pictures, tmp_path):
    with_vectors = tmp_path / "v.zarr"
    shutil.copytree(store, with_vectors)
    words = f"vectors --teacher {TEACHER.model} --teacher-pretrained random --teacher-size 48 --out {with_vectors}"
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 0, done.output
    stage = planned(picture_shards, with_vectors, tmp_path / "s", feature_targets="embedding,tokens", epochs=1)
    run(stage, stage.out)
    loaded = load_student(str(tmp_path / "s"))
    assert loaded.vectors.num_classes == 1000
    done = CliRunner().invoke(main, ["predict", str(tmp_path / "s"), str(next(pictures.rglob("*.png")))])
    assert done.exit_code == 0, done.output
    without = planned(picture_shards, store, tmp_path / "t", feature_targets="embedding")
    assert without.vectors is None


@pytest.mark.parametrize(
    ("options", "where", "found"),
    [
        ({"feature_targets": "tokens,features.layer3"}, "--feature-targets", "features.layer3"),
        ({"feature_targets": "tokens", "student_layers": "features.blocks.2"}, "--student-layers", "features.blocks.2"),
        (
            {"feature_targets": "tokens", "student_layers": "features.layer2,features.layer3"},
            "--student-layers",
            "features.layer2,features.layer3",
        ),
        (
            {"feature_targets": "tokens", "projector": "none", "student_layers": "features.layer2"},
            "--projector none",
            "48",
        ),
        ({"feature_targets": "tokens", "vectors": "STORE"}, "--vectors STORE", "tokens"),
        ({"feature_targets": "tokens", "validation": "IMAGES"}, "--validation IMAGES", "None"),
        ({"feature_loss": "hinge"}, "--feature-loss", "hinge"),
        ({"temperature": 2.0}, "--temperature", "None"),
    ],
)
def test_what_is_refused(picture_shards, store, tmp_path, options, where, found):
    with pytest.raises(InputError) as error:
        planned(picture_shards, store, tmp_path / "s", **options)
    assert (str(error.value.where), str(error.value.found)) == (where, found)


def test_stores_without_what_a_recipe_needs(picture_shards, make_store, store, tmp_path):
    logits = make_store(picture_shards, tmp_path / "logits.zarr", widths={"logits": 7})
    with pytest.raises(InputError) as error:
        planned(picture_shards, logits.location, tmp_path / "a")
    assert error.value.code == "features-not-in-store"
    assert str(error.value.where).startswith("--recipe features")
    with pytest.raises((IncompleteError, MismatchError)) as caught:
        plan_distill(
            str(picture_shards.location),
            str(store),
            RESNET,
            out=str(tmp_path / "b"),
            recipe="kd",
            compute=FP32,
            options={"batch_size": 8},
            settings=DistillSettings(),
        )
    assert caught.value.code == "vectors-missing"
