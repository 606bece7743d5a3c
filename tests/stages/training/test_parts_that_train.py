"""Layer decay, freezing by name, low-rank additions, a layer for the classes and starts from a bundle, against plain timm, peft and torch."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from teachonce.pipeline.storage import Location
from teachonce.stages.models.class_head import ClassHead
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.recipes.registry import recipe_named
from teachonce.stages.students.bundle import load_student, write_bundle
from teachonce.stages.training.build import BuiltStudent, build_student
from teachonce.stages.training.layer_decay import layer_scales, with_layer_decay
from teachonce.stages.training.trainer import Trainer
from teachonce.storage_schemas.bundle import BundleConfig
from teachonce.storage_schemas.class_vectors import ClassVectors
from teachonce.storage_schemas.errors import InputError, MissingDependency
from teachonce.storage_schemas.fingerprint import Fingerprint
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn import functional as F

CPU = Compute(device="cpu", precision="fp32", threads=1)
STEPS, BATCH, SIZE = 10, 6, 32
CONVNET, VIT = "timm:test_efficientnet", "timm:test_vit"


def teacher(width: int = 6) -> ClassVectors:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, width)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return ClassVectors(names=tuple("abcdefg"), vectors_CD=values, bias_C=None, logit_scale=10.0, normalized=True)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return images, torch.randn(BATCH, 7, generator=generator)


def build(
    model: str, *, pretrained: str | None = None, vectors: ClassVectors | None = None, **options: Any
) -> BuiltStudent:
    recipe = recipe_named("kd")
    given = {"optimizer": "sgd", "lr": 0.05, "schedule": "constant", "warmup_epochs": 0, "batch_size": BATCH, **options}
    size = None if model.startswith("local-dir:") or pretrained else SIZE
    config = StudentConfig(model=model, size=size, pretrained=pretrained)
    return build_student(config, recipe, recipe.defaults.override("kd", given), vectors or teacher(), seed=3)


def train(built: BuiltStudent, folder: Any, **options: Any) -> list[float]:
    """Ten steps of the trainer; their losses."""
    recipe = recipe_named("kd")
    given = {"optimizer": "sgd", "lr": 0.05, "schedule": "constant", "warmup_epochs": 0, "batch_size": BATCH, **options}
    trainer = Trainer(
        student=built.student,
        recipe=recipe,
        settings=recipe.defaults.override("kd", given),
        teacher_logits=None,
        student_head=built.student.classes or ClassHead(teacher(), built.logit_scale),
        targets=("logits",),
        steps_per_epoch=STEPS,
        preprocess=built.backbone.preprocess,
        compute=CPU,
        seed=0,
        folder=Location.of(folder),
        fingerprint=Fingerprint(fields={}),
    )
    training = trainer.prepare()
    trainer.wrap()
    losses = []
    for step in range(STEPS):
        images, logits = batch(step)
        losses.append(float(trainer.step(training, images, {"logits": logits}, lr=0.05, step=step)))
    return losses


def kl(said: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    p = logits.softmax(dim=1)
    return (p * (logits.log_softmax(dim=1) - said.log_softmax(dim=1))).sum(dim=1).mean()


def same(a: nn.Module, b: nn.Module) -> None:
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], rtol=1e-5, atol=1e-5, msg=name)


# Layer decay


@pytest.mark.parametrize(
    "name", ["test_vit", "test_efficientnet", "test_convnext", "test_resnet", "test_byobnet", "test_mambaout"]
)
def test_layers_are_those_of_timm_for_a_model_with_a_classifier(name: str) -> None:
    classifier, backbone = (timm.create_model(name, num_classes=classes) for classes in (10, 0))
    theirs: dict[int, float] = {}
    for group in param_groups_layer_decay(classifier, layer_decay=0.5):
        theirs |= {id(parameter): group["lr_scale"] for parameter in group["params"]}
    expected = {parameter_name: theirs[id(p)] for parameter_name, p in classifier.named_parameters()}
    found = layer_scales(backbone, 0.5, what=name)
    assert found == {parameter_name: expected[parameter_name] for parameter_name, _ in backbone.named_parameters()}
    assert len(set(found.values())) > 2


def test_layers_of_open_clips_towers(tiny_clip) -> None:
    backbone = build(f"local-dir:{tiny_clip}").student.backbone  # 3 blocks; the projection is a new part's neighbour
    found = layer_scales(backbone, 0.5, what="")
    blocks = {f"transformer.resblocks.{i}.mlp.c_fc.weight": 0.5 ** (3 - i) for i in range(3)}
    assert {name: found[name] for name in blocks} == blocks
    stem = ("conv1.weight", "class_embedding", "positional_embedding", "ln_pre.bias")
    assert [found[name] for name in stem] == [0.5**4] * 4
    assert (found["ln_post.weight"], found["proj"]) == (0.5, 1.0)
    with torch.device("meta"):
        resnet = open_clip.modified_resnet.ModifiedResNet([1, 1, 1, 1], 8, 1, image_size=32, width=8)
    scales = layer_scales(resnet, 0.5, what="")
    names = ("attnpool.q_proj.weight", "layer4.0.conv1.weight", "layer1.0.bn1.bias", "conv1.weight", "bn3.weight")
    assert [scales[name] for name in names] == [1.0, 0.5, 0.5**4, 0.5**5, 0.5**5]


def test_a_wrapped_trunk_has_its_own_layers() -> None:
    tower = open_clip.timm_model.TimmModel("test_vit", embed_dim=8, image_size=32, proj="linear")
    found = layer_scales(tower, 0.5, what="")
    own = layer_scales(tower.trunk, 0.5, what="")
    assert {name: found[f"trunk.{name}"] for name in own} == own
    assert found["head.proj.weight"] == 1.0


def test_a_module_whose_layers_nobody_knows() -> None:
    with pytest.raises(InputError) as error:
        layer_scales(nn.Linear(2, 2), 0.5, what="Linear")
    assert str(error.value) == (
        "this student's layers are not known: --layer-decay: expected a model of timm's with `group_matcher`, or an image tower of "
        "open_clip's, found Linear. Next: leave out --layer-decay"
    )


def test_ten_steps_with_layer_decay_are_those_of_plain_torch(tmp_path) -> None:
    built = build(VIT, layer_decay=0.6, weight_decay=0.05)
    plain = copy.deepcopy(built.student).train()
    losses = train(built, tmp_path, layer_decay=0.6, weight_decay=0.05)
    scales = layer_scales(plain.backbone, 0.6, what="")
    groups = [
        {
            "params": [p],
            "lr": 0.05 * (scales[n.removeprefix("backbone.")] if n.startswith("backbone.") else 1.0),
            "weight_decay": 0.05 if p.ndim > 1 else 0.0,
        }
        for n, p in plain.named_parameters()
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    for step in range(STEPS):
        images, logits = batch(step)
        optimizer.zero_grad()
        loss = kl(10 * plain(images) @ torch.from_numpy(teacher().vectors_CD).T, logits)
        loss.backward()
        optimizer.step()
        assert losses[step] == pytest.approx(loss.item(), rel=1e-5)
    same(plain, built.student)


def test_without_decay_the_groups_are_the_recipes(tmp_path) -> None:
    built = build(VIT)
    groups = [{"params": list(built.student.parameters()), "weight_decay": 0.1}]
    assert with_layer_decay(groups, built.student, 1.0) == groups


# Freezing


def test_what_is_frozen_stays_and_all_else_trains(tmp_path) -> None:
    options: dict[str, Any] = {"freeze": "conv_stem, bn1 ,blocks.[01],projector.bias"}
    built = build(CONVNET, **options)
    before = copy.deepcopy(built.student)
    train(built, tmp_path, **options)
    changed, after = set(), built.student.state_dict()
    for name, value in before.state_dict().items():
        if not torch.equal(value, after[name]):
            changed.add(name)
    frozen = ("backbone.conv_stem.", "backbone.bn1.", "backbone.blocks.0.", "backbone.blocks.1.", "projector.bias")
    assert not [name for name in changed if name.startswith(frozen)]  # batch norm's averages stay too
    assert changed == {name for name in after if not name.startswith(frozen)}
    for name, module in built.student.named_modules():
        assert module.training == (not f"{name}.".startswith(frozen[:4])), name


def test_batch_norm_whose_own_parameters_are_frozen_does_not_train() -> None:
    built = build(CONVNET, freeze="*bn*.weight,*bn*.bias")
    norms = [m for m in built.student.train().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert built.student.backbone.conv_stem.training


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (
            "conv_sten",
            "the student has no part of this name: --freeze: expected parts of conv_stem, bn1, blocks, conv_head, bn2, projector, "
            "found conv_sten. Next: did you mean conv_stem, conv_head, conv_stem.weight?",
        ),
        (
            "*",
            "nothing of the student is left to train: --freeze: expected a part that trains, found *. Next: leave out a pattern",
        ),
    ],
)
def test_patterns_that_make_no_sense(pattern: str, text: str) -> None:
    with pytest.raises(InputError) as error:
        build(CONVNET, freeze=pattern)
    assert str(error.value) == text


def test_additions_that_are_all_frozen_are_refused(tiny_clip) -> None:
    options: dict[str, Any] = {"lora_rank": 2, "lora_targets": "*.1.attn"}
    assert build(f"local-dir:{tiny_clip}", freeze="*.0.attn", **options).additions
    with pytest.raises(InputError) as error:
        build(f"local-dir:{tiny_clip}", freeze="*.1.attn,class_embedding", **options)
    assert str(error.value) == (
        "none of the low-rank additions is left to train: --freeze: expected fewer layers than --lora-rank adds to, "
        "found *.1.attn,class_embedding. Next: leave out a pattern, or --lora-rank"
    )


def test_a_recipe_whose_backbone_is_frozen_has_no_parts_to_choose(tiny_clip) -> None:
    recipe = recipe_named("promptkd")
    for options, option in (
        ({"layer_decay": 0.5}, "--layer-decay"),
        ({"freeze": "proj"}, "--freeze"),
        ({"lora_rank": 2}, "--lora-rank"),
    ):
        settings = recipe.defaults.override("promptkd", options)
        with pytest.raises(InputError) as error:
            build_student(
                StudentConfig(model=f"local-dir:{tiny_clip}", pretrained=None), recipe, settings, teacher(), seed=0
            )
        assert str(error.value) == (
            f"recipe promptkd keeps the student's backbone as it is: {option}: found {next(iter(options.values()))}. "
            "Next: leave it out, or use a recipe that trains the backbone"
        )


# Low-rank additions


@pytest.mark.parametrize(
    ("model", "targets", "expected"),
    [
        (VIT, "", None),
        (VIT, "blocks.0.*.qkv,blocks.1.mlp.fc1", {"blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight"}),
        (CONVNET, "conv_head", {"conv_head.weight"}),
        ("clip", "", None),
    ],
)
def test_merged_weights_give_what_the_additions_gave(
    tiny_clip, tmp_path, model: str, targets: str, expected: set[str] | None
) -> None:
    model = f"local-dir:{tiny_clip}" if model == "clip" else model
    options: dict[str, Any] = {"lora_rank": 2, "lora_targets": targets}
    plain = build(model).student
    built = build(model, **options)
    images, _ = batch(99)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(images), built.student.eval()(images))  # at first they add nothing
    train(built, tmp_path, **options)
    assert {name.rpartition("lora_")[2][:1] for name in built.student.trained() if name.startswith("backbone")} == {
        "A",
        "B",
    }
    with torch.no_grad():
        unmerged = built.student.eval()(images)
        assert not torch.allclose(unmerged, plain(images), atol=1e-3)
        built.finish()
        torch.testing.assert_close(built.student.eval()(images), unmerged, rtol=1e-4, atol=1e-5)
        plain.load_state_dict(built.student.state_dict())  # the names are those of a student without additions
        torch.testing.assert_close(plain(images), unmerged, rtol=1e-4, atol=1e-5)
    first = build(model).student.backbone
    changed = {n for n, p in first.named_parameters() if not torch.equal(p, plain.backbone.get_parameter(n))}
    assert changed == (expected or {n for n, p in first.named_parameters() if is_matrix_of_a_layer(n, p)})


def is_matrix_of_a_layer(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim == 2 and "blocks" in name


def test_ten_steps_with_additions_are_those_of_plain_torch(tmp_path) -> None:
    """W + alpha / rank · B A on one layer, written out."""
    options: dict[str, Any] = {
        "lora_rank": 2,
        "lora_alpha": 6.0,
        "lora_targets": "blocks.1.mlp.fc1",
        "weight_decay": 0.0,
        "freeze": "projector",
    }
    built = build(VIT, **options)
    plain = copy.deepcopy(build(VIT).student).train()
    layer = built.student.backbone.blocks[1].mlp.fc1
    a, b = (part["default"].weight.detach().clone().requires_grad_() for part in (layer.lora_A, layer.lora_B))
    losses = train(built, tmp_path, **options)
    weight = plain.backbone.blocks[1].mlp.fc1.weight.detach().clone()
    del plain.backbone.blocks[1].mlp.fc1.weight
    optimizer = torch.optim.SGD([a, b], lr=0.05, momentum=0.9)
    for step in range(STEPS):
        images, logits = batch(step)
        optimizer.zero_grad()
        plain.backbone.blocks[1].mlp.fc1.weight = weight + 6 / 2 * b @ a
        loss = kl(10 * plain(images) @ torch.from_numpy(teacher().vectors_CD).T, logits)
        loss.backward()
        optimizer.step()
        assert losses[step] == pytest.approx(loss.item(), rel=1e-5)
    built.finish()
    merged = built.student.backbone.blocks[1].mlp.fc1.weight
    torch.testing.assert_close(merged, weight + 3 * b @ a, rtol=0, atol=1e-4)
    assert (merged - weight).abs().max() > 1e-2


def test_attention_of_torchs_own_gets_alpha_by_rank_times_the_product(tiny_clip) -> None:
    built = build(f"local-dir:{tiny_clip}", lora_rank=2, lora_alpha=6.0, lora_targets="*.1.attn")
    attention: Any = built.student.get_submodule("backbone.transformer.resblocks.1.attn")
    additions = {
        "in_proj_weight": (attention, attention.parametrizations.in_proj_weight[0]),
        "out_proj.weight": (attention.out_proj, attention.out_proj.parametrizations.weight[0]),
    }
    expected = {}
    for name, (module, added) in additions.items():
        nn.init.normal_(added.lora_B)
        before = module.parametrizations[name.rpartition(".")[2]].original.detach().clone()
        expected[name] = before + 3 * (added.lora_B @ added.lora_A).detach()
    built.finish()
    assert not nn.utils.parametrize.is_parametrized(attention)
    for name, weight in expected.items():
        torch.testing.assert_close(attention.get_parameter(name).detach(), weight, rtol=1e-6, atol=1e-6)


def test_layers_that_cannot_have_additions_are_refused() -> None:
    with pytest.raises(InputError) as error:
        build(CONVNET, lora_rank=2, lora_targets="bn1")
    assert str(error.value) == (
        "these layers of the student cannot have low-rank additions: --lora-targets bn1: expected linear layers, torch's "
        "MultiheadAttention, or ungrouped convolutions, found BatchNormAct2d. Next: leave out --lora-targets"
    )
    with pytest.raises(InputError, match="--lora-alpha needs --lora-rank"):
        build(CONVNET, lora_alpha=2.0)


@pytest.mark.parametrize(("targets", "most"), [("", 64), ("*.fc1", 64), ("patch_embed.proj", 64)])
def test_a_rank_beyond_that_of_the_weights_is_refused(targets: str, most: int) -> None:
    build(VIT, lora_rank=most, lora_targets=targets)
    with pytest.raises(InputError) as error:
        build(VIT, lora_rank=99_999_999, lora_targets=targets)
    assert str(error.value) == (
        f"impossible setting: --lora-rank: expected at most {most}, the rank that the weights of its layers have themselves, found 99999999"
    )


def test_without_peft_it_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependency) as error:
        build(VIT, lora_rank=2)
    assert str(error.value) == "low-rank additions (--lora-rank) need peft. Next: pip install 'teachonce[lora]'"


# A layer for the classes


def test_ten_steps_with_a_layer_for_the_classes_are_those_of_plain_torch(tmp_path) -> None:
    options: dict[str, Any] = {"projector": "classes", "weight_decay": 0.0}
    built = build(VIT, **options)
    plain = copy.deepcopy(built.student).train()
    losses = train(built, tmp_path, **options)
    linear = plain.classes.layer
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        images, logits = batch(step)
        optimizer.zero_grad()
        loss = kl(F.linear(plain.backbone(plain.normalize(images)), linear.weight, linear.bias), logits)
        loss.backward()
        optimizer.step()
        assert losses[step] == pytest.approx(loss.item(), rel=1e-5)
    same(plain, built.student)
    vectors = built.vectors(teacher())
    built.finish()
    images, _ = batch(99)
    with torch.no_grad():
        expected = linear(plain.eval().backbone(plain.normalize(images)))
        found = vectors.logits(built.student.eval()(images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (vectors.names, vectors.normalized, vectors.logit_scale) == (tuple("abcdefg"), False, 1.0)
    assert not [name for name in built.student.state_dict() if "classes" in name]


def test_a_layer_for_the_classes_has_no_embedding_of_the_teachers_width() -> None:
    with pytest.raises(InputError) as error:
        build(VIT, projector="classes", embedding_loss="cosine")
    assert (
        str(error.value)
        == "impossible setting: --embedding-loss: expected none, with --projector classes, found cosine"
    )


# Starting from a bundle


def bundle(built: BuiltStudent, folder: Any) -> str:
    vectors = built.vectors(teacher())
    built.finish()
    config = BundleConfig(
        student=built.backbone.config,
        head=replace(built.student.head, classes=0).to_json(),
        preprocess=built.backbone.preprocess.to_json(),
        class_names=vectors.names,
        logit_scale=vectors.logit_scale,
        normalized=vectors.normalized,
        origin={},
    )
    write_bundle(Location.of(folder), built.student, vectors, config)
    return str(folder)


@pytest.mark.parametrize(("options", "parts"), [({}, "backbone, projector"), ({"projector": "mlp"}, "backbone")])
def test_a_student_starts_from_a_finished_one(tmp_path, options: dict[str, Any], parts: str) -> None:
    first = build(CONVNET)
    train(first, tmp_path / "run")
    folder = bundle(first, tmp_path / "first")
    second = build(CONVNET, pretrained=folder, **options)
    anew = build(CONVNET, **options)
    same(first.student.backbone, second.student.backbone)
    projector = (anew if options else first).student.get_submodule("projector")
    same(projector, second.student.get_submodule("projector"))
    assert (second.backbone.weights, second.backbone.loaded) == ("bundle first", parts)
    assert second.backbone.config == first.backbone.config
    assert second.digest != anew.digest
    assert len(second.student.trained()) == len(anew.student.trained())


def test_a_layer_for_the_classes_goes_on_where_it_was(tmp_path) -> None:
    first = build(VIT, projector="classes")
    train(first, tmp_path / "run", projector="classes")
    expected = copy.deepcopy(first.student)
    second = build(VIT, pretrained=bundle(first, tmp_path / "first"), projector="classes")
    same(expected, second.student)


def test_another_model_or_size_is_refused(tmp_path, tiny_clip) -> None:
    folder = bundle(build(VIT), tmp_path / "first")
    with pytest.raises(InputError) as error:
        build("timm:test_vit2", pretrained=folder)
    assert str(error.value) == (
        f"the student to start from is another model: --student-pretrained {folder}: expected timm:test_vit2: name test_vit2, found "
        "test_vit: name test_vit. Next: name its own model with --student"
    )
    with pytest.raises(InputError, match="the student to start from is another model"):
        build(f"local-dir:{tiny_clip}", pretrained=folder)
    config = StudentConfig(model=VIT, size=64, pretrained=folder)
    recipe = recipe_named("kd")
    with pytest.raises(InputError) as error:
        build_student(config, recipe, recipe.defaults, teacher(), seed=0)
    assert str(error.value) == (
        f"a finished student keeps the size of its images: --student-pretrained {folder}: expected --student-size 32, found 64. "
        "Next: leave out --student-size"
    )


def test_prompts_come_along_or_are_refused(tmp_path, tiny_clip) -> None:
    recipe, model = recipe_named("promptkd"), f"local-dir:{tiny_clip}"

    def prompted(pretrained: str, **options: Any) -> BuiltStudent:
        settings = recipe.defaults.override("promptkd", {"prompt_depth": 2, **options})
        config = StudentConfig(model=model, pretrained=pretrained)
        return build_student(config, recipe, settings, teacher(), seed=5)

    first = prompted("random")
    folder = bundle(first, tmp_path / "first")
    again = prompted(folder)
    same(first.student, again.student)
    assert again.backbone.loaded == "backbone, prompts, projector"
    assert again.logit_scale == first.logit_scale
    with pytest.raises(InputError) as error:
        build(model, pretrained=folder)
    assert str(error.value) == (
        "the student to start from has prompts: --student-pretrained: expected a recipe with prompts of the same shape, (2, 4) (depth, "
        "length), found none. Next: --recipe promptkd, with its --prompt-depth and --prompt-length"
    )
    assert load_student(folder).student.head.prompt_depth == 2
