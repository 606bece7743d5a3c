"""The recipes against losses, learning rates and training loops written by hand from the papers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from teachonce.pipeline.settings import option_name
from teachonce.pipeline.storage import Location
from teachonce.pipeline.types import Timer
from teachonce.stages.models.class_head import ClassHead
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.recipes.recipe import LossInputs
from teachonce.stages.recipes.registry import recipe_named
from teachonce.stages.recipes.schedule import learning_rate
from teachonce.stages.recipes.settings import TrainSettings
from teachonce.stages.training.build import BuiltStudent, build_student
from teachonce.stages.training.checkpoint import TrainState
from teachonce.stages.training.mixture import LogitsOf, Mixture, TargetLogits
from teachonce.stages.training.one_pass import train_on_one_pass
from teachonce.stages.training.trainer import Trainer, step_seed
from teachonce.storage_schemas.class_vectors import ClassVectors
from teachonce.storage_schemas.errors import InputError
from teachonce.storage_schemas.fingerprint import Fingerprint
from torch import nn
from torch.nn import functional as F

CPU = Compute(device="cpu", precision="fp32", threads=1)


def vectors(*, normalized: bool = True) -> ClassVectors:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 6)).astype(np.float32)
    if normalized:
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    return ClassVectors(
        names=tuple("abcdefg"),
        vectors_CD=values,
        logit_scale=30.0 if normalized else 1.0,
        normalized=normalized,
        bias_C=None if normalized else rng.normal(size=7).astype(np.float32),
    )


@dataclass
class Batch:
    images_NCHW: torch.Tensor
    targets: dict[str, torch.Tensor]


class Memory:
    """Batches in memory, other ones in each epoch."""

    def __init__(self, *, size: int, batch: int, steps: int, teacher: ClassVectors, names: tuple[str, ...]) -> None:
        self.steps_per_epoch, self._size, self._batch = steps, size, batch
        self._teacher, self._names = teacher, names
        self.closed = False

    def batches(self, epoch: int, first_sample: int = 0) -> Iterator[Batch]:
        for step in range(first_sample // self._batch, self.steps_per_epoch):
            yield self.batch(epoch, step)

    def batch(self, epoch: int, step: int) -> Batch:
        generator = torch.Generator().manual_seed(1000 * epoch + step)
        shape = (self._batch, 3, self._size, self._size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        embedding = torch.randn(self._batch, 6, generator=generator)
        if self._teacher.normalized:
            embedding = F.normalize(embedding)
        targets = {
            "embedding": embedding,
            "logits": torch.from_numpy(self._teacher.logits(embedding.numpy())),
        }
        return Batch(images, {name: targets[name] for name in self._names})

    def close(self) -> None:
        self.closed = True


def formed(teacher: ClassVectors) -> TargetLogits:
    """What makes the teacher's logits of its embeddings."""
    return TargetLogits(Mixture(teachers=(LogitsOf(target="embedding", vectors=teacher),)))


def train(
    built: BuiltStudent,
    recipe: str,
    settings: TrainSettings,
    stream: Memory,
    teacher: ClassVectors,
    folder,
    monkeypatch,
) -> list[float]:
    """Train with the real loop; the loss of every step."""
    losses = []
    step = Trainer.step

    def recorded(*args, **kwargs) -> torch.Tensor:
        losses.append(step(*args, **kwargs))
        return losses[-1]

    monkeypatch.setattr(Trainer, "step", recorded)
    trainer = Trainer(
        student=built.student,
        recipe=recipe_named(recipe),
        settings=settings,
        teacher_logits=None if "logits" in stream._names else formed(teacher),
        student_head=ClassHead(teacher, built.logit_scale),
        targets=stream._names,
        steps_per_epoch=stream.steps_per_epoch,
        preprocess=built.backbone.preprocess,
        compute=CPU,
        seed=0,
        folder=Location.of(folder),
        fingerprint=Fingerprint(fields={}),
    )
    ((_, ended),) = train_on_one_pass({"student": (trainer, Timer())}, stream, show_progress=False)
    assert isinstance(ended, TrainState), ended
    return [float(loss) for loss in losses]


# --- losses


def outputs() -> LossInputs:
    generator = torch.Generator().manual_seed(1)
    student, embedding, logits, target = (torch.randn(4, width, generator=generator) * 3 for width in (6, 6, 7, 7))
    return LossInputs(
        student={"embedding": student, "logits": logits}, teacher={"embedding": embedding, "logits": target}
    )


def divergence(found: LossInputs, t: float) -> float:
    """Sum over the batch of KL(teacher || student) in double precision."""
    teacher, student = (torch.softmax(x.double() / t, 1) for x in (found.teacher["logits"], found.student["logits"]))
    return float((teacher * (teacher.log() - student.log())).sum())


@pytest.mark.parametrize("t", [1.0, 4.0])
def test_promptkds_loss(t: float) -> None:
    settings = recipe_named("promptkd").defaults.override("promptkd", {"temperature": t})
    expected = 1000 * t * t * divergence(outputs(), t) / (4 * 7)
    assert float(recipe_named("promptkd").loss(outputs(), settings)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("t", [1.0, 4.0])
def test_kds_loss(t: float) -> None:
    kd = recipe_named("kd")
    settings = kd.defaults.override("kd", {"temperature": t, "loss_weight": 3.0})
    base = 3 * t * t * divergence(outputs(), t) / 4
    assert float(kd.loss(outputs(), settings)) == pytest.approx(base, rel=1e-5)
    student, teacher = outputs().student["embedding"].double(), outputs().teacher["embedding"].double()
    cosine = (student * teacher).sum(1) / student.norm(dim=1) / teacher.norm(dim=1)
    with_cosine = replace(settings, embedding_loss="cosine", embedding_weight=2.0)
    assert float(kd.loss(outputs(), with_cosine)) == pytest.approx(base + 2 * float((1 - cosine).mean()), rel=1e-5)
    with_mse = replace(settings, embedding_loss="mse", embedding_weight=0.5)
    squares = ((student - teacher) ** 2).sum(1).mean()
    assert float(kd.loss(outputs(), with_mse)) == pytest.approx(base + 0.5 * float(squares), rel=1e-5)
    assert [kd.targets(s, ()) for s in (settings, with_cosine, with_mse)] == [
        ("logits",),
        ("logits", "embedding"),
        ("logits", "embedding"),
    ]


def test_kds_loss_with_labels() -> None:
    """Images without a label add nothing, and count as images."""
    kd = recipe_named("kd")
    settings = kd.defaults.override("kd", {"temperature": 2.0, "label_weight": 0.5})
    assert kd.targets(settings, ()) == ("logits", "label")
    plain = float(kd.loss(outputs(), replace(settings, label_weight=0.0)))
    label_N = torch.tensor([3, -1, 0, 6])
    student_NC = outputs().student["logits"].double()
    terms = [float(student_NC[i].logsumexp(0) - student_NC[i, int(c)]) for i, c in enumerate(label_N) if c >= 0]
    given = replace(outputs(), teacher={**outputs().teacher, "label": label_N})
    assert float(kd.loss(given, settings)) == pytest.approx(plain + 0.5 * sum(terms) / 4, rel=1e-5)
    assert "label_weight" not in kd.defaults.to_json()


def test_a_student_that_says_what_its_teacher_says_has_no_loss() -> None:
    same = replace(outputs(), student=outputs().teacher)
    for name in ("kd", "promptkd", "features", "reverse-distillation"):
        recipe = recipe_named(name)
        assert float(recipe.loss(same, recipe.defaults)) == pytest.approx(0, abs=1e-4)


# --- learning rates


def rates(schedule: str, **changes) -> list[float]:
    fields = {"lr": 0.005, "epochs": 20, "warmup_epochs": 1, "steps_per_epoch": 5, **changes}
    return [
        learning_rate(schedule, epoch=epoch, step=step, **fields)
        for epoch in range(fields["epochs"])
        for step in range(fields["steps_per_epoch"])
    ]


def test_promptkds_learning_rates() -> None:
    found = rates("coop")[::5]
    assert rates("coop") == [rate for rate in found for _ in range(5)]  # stepped per epoch
    assert found[0] == 1e-5
    assert found[1] == 0.005
    assert found[11] == pytest.approx(0.0025)
    assert found[1:] == pytest.approx([0.005 * (1 + math.cos(math.pi * (e - 1) / 20)) / 2 for e in range(1, 20)])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.005)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for rate in found[1:]:
        assert rate == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_cosine_with_warm_up() -> None:
    found = rates("cosine", epochs=4, warmup_epochs=1, steps_per_epoch=4, lr=1.0)
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[10] == pytest.approx(0.5)
    assert 0 < found[-1] < 0.02
    assert rates("constant", epochs=2, steps_per_epoch=2, lr=1.0) == [0.5, 1.0, 1.0, 1.0]
    assert rates("cosine", warmup_epochs=0)[0] == 0.005


# --- training


def handwritten_promptkd(
    folder, steps: int, stream: Memory, teacher: ClassVectors
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Ten steps, straight from the paper: open_clip's own tower, hooks for the prompts, torch's SGD."""
    built = build_student(
        StudentConfig(model=f"local-dir:{folder}"),
        recipe_named("promptkd"),
        recipe_named("promptkd").defaults,
        teacher,
        seed=0,
    )
    start = built.student.state_dict()
    tower = open_clip.create_model(f"local-dir:{folder}").visual.eval().requires_grad_(False)
    prompts = nn.Parameter(start["backbone.prompts_LPD"].clone())
    projector = nn.Sequential(nn.Conv2d(5, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1))
    for name, value in projector.state_dict().items():
        value.copy_(start[f"projector.{name}"].reshape(value.shape))

    def after_norm(module, inputs, output):
        return torch.cat([output, F.layer_norm(prompts[0], (32,), module.weight, module.bias).expand(8, -1, -1)], 1)

    def before_block(layer):
        return lambda _, inputs: (torch.cat([inputs[0][:, :-4], prompts[layer].expand(8, -1, -1)], 1),)

    tower.ln_pre.register_forward_hook(after_norm)
    for layer in (1, 2):
        tower.transformer.resblocks[layer].register_forward_pre_hook(before_block(layer))
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    classes = torch.from_numpy(teacher.vectors_CD)
    optimizer = torch.optim.SGD([prompts, *projector.parameters()], lr=0.005, momentum=0.9, weight_decay=5e-4)
    losses = []
    for step in range(steps):
        epoch = step // stream.steps_per_epoch
        lr = 1e-5 if epoch == 0 else 0.005 * (1 + math.cos(math.pi * (epoch - 1) / 5)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = stream.batch(epoch, step % stream.steps_per_epoch)
        images = ((batch.images_NCHW.permute(0, 2, 3, 1) / 255 - mean) / std).permute(0, 3, 1, 2)
        features = projector(tower(images)[..., None, None])[..., 0, 0]
        features = features / features.norm(dim=-1, keepdim=True)
        student = 10.0 * features @ classes.T  # the tiny CLIP's own logit scale, not the teacher's 30
        target = batch.targets["logits"]
        loss = (
            1000 * F.kl_div(F.log_softmax(student, dim=1), F.softmax(target, dim=1), reduction="sum") / student.numel()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    projected = {f"projector.{n}": v.reshape(start[f"projector.{n}"].shape) for n, v in projector.state_dict().items()}
    return losses, {"backbone.prompts_LPD": prompts.detach()} | projected


@pytest.mark.parametrize("names", [("logits",), ("embedding",)])
def test_ten_steps_of_promptkd(tiny_clip, tmp_path, monkeypatch, names: tuple[str, ...]) -> None:
    teacher = vectors()
    stream = Memory(size=32, batch=8, steps=2, teacher=teacher, names=("logits",))
    expected_losses, expected = handwritten_promptkd(tiny_clip, 10, stream, teacher)
    settings = recipe_named("promptkd").defaults.override("promptkd", {"epochs": 5})
    config = StudentConfig(model=f"local-dir:{tiny_clip}")
    built = build_student(config, recipe_named("promptkd"), settings, teacher, seed=0)
    frozen = {n: v.clone() for n, v in built.student.state_dict().items() if n.startswith("backbone.tower")}
    stream = Memory(size=32, batch=8, steps=2, teacher=teacher, names=names)
    losses = train(built, "promptkd", settings, stream, teacher, tmp_path, monkeypatch)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert losses[-1] < losses[0]
    state = built.student.state_dict()
    assert all(torch.equal(state[name], value) for name, value in frozen.items())
    assert len(frozen) > 20
    assert {n for n in state if n not in frozen} == set(expected)
    for name, value in expected.items():
        # A bias in front of batch norm has no gradient but rounding; the mean that follows it takes it out
        # again.
        tolerance = 1e-3 if name in ("projector.0.bias", "projector.1.running_mean") else 1e-5
        error = (state[name] - value).abs().max() / value.abs().max()
        assert error <= tolerance, f"{name}: {error:.2e}"
    assert stream.closed


@pytest.mark.parametrize("normalized", [True, False])
def test_ten_steps_of_kd(tmp_path, monkeypatch, normalized: bool) -> None:
    """The whole student against a loop by hand: torch's AdamW, Hinton's loss, the teacher's own head."""
    teacher = vectors(normalized=normalized)
    recipe, config = recipe_named("kd"), StudentConfig(model="timm:test_vit", size=32)
    settings = recipe.defaults.override("kd", {"epochs": 5, "batch_size": 8, "temperature": 2.0})
    built = build_student(config, recipe, settings, teacher, seed=0)
    net = timm.create_model("test_vit", num_classes=0, img_size=32)
    projector = nn.Linear(net.num_features, 6)
    start = built.student.state_dict()
    net.load_state_dict({n.removeprefix("backbone."): v for n, v in start.items() if n.startswith("backbone.")})
    projector.load_state_dict({"weight": start["projector.weight"], "bias": start["projector.bias"]})
    parameters = [*net.train().parameters(), *projector.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    )
    stream = Memory(size=32, batch=8, steps=2, teacher=teacher, names=("embedding",))
    mean = torch.tensor(built.backbone.preprocess.mean).view(3, 1, 1)
    std = torch.tensor(built.backbone.preprocess.std).view(3, 1, 1)
    classes = torch.from_numpy(teacher.vectors_CD)
    bias = 0 if teacher.bias_C is None else torch.from_numpy(teacher.bias_C)
    expected = []
    for step in range(10):
        lr = 1e-3 * (step + 1) / 2 if step < 2 else 1e-3 * (1 + math.cos(math.pi * (step - 2) / 8)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = stream.batch(step // 2, step % 2)
        embedding = projector(net((batch.images_NCHW / 255 - mean) / std))
        if normalized:
            embedding = embedding / embedding.norm(dim=1, keepdim=True)
        student, target = (
            teacher.logit_scale * (e @ classes.T) + bias for e in (embedding, batch.targets["embedding"])
        )
        soft, log = torch.softmax(target / 2, 1), torch.log_softmax(student / 2, 1)
        loss = 4 * (soft * (soft.log() - log)).sum() / 8
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    losses = train(built, "kd", settings, stream, teacher, tmp_path, monkeypatch)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0]


def test_random_numbers_of_a_step_depend_on_seed_and_step_alone() -> None:
    seeds = {step_seed(seed, step) for seed in range(3) for step in range(100)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)


# --- settings


def test_the_published_settings_of_promptkd() -> None:
    assert recipe_named("promptkd").defaults.to_json() == {
        "epochs": 20,
        "batch_size": 8,
        "optimizer": "sgd",
        "lr": 0.005,
        "weight_decay": 5e-4,
        "schedule": "coop",
        "warmup_epochs": 1,
        "temperature": 1.0,
        "loss_weight": 1000.0,
        "projector": "mlp",
        "prompt_length": 4,
        "prompt_depth": 9,
    }


@pytest.mark.parametrize(
    ("recipe", "option", "message"),
    [
        (
            "kd",
            {"prompt_length": 4},
            "an option that recipe kd does not have: --prompt-length. Next: leave it out",
        ),
        (
            "promptkd",
            {"embedding_loss": "mse"},
            "an option that recipe promptkd does not have: --embedding-loss. Next: leave it out",
        ),
        ("kd", {"lr": 0.0}, "impossible setting: --lr: expected more than 0, found 0.0"),
        (
            "kd",
            {"epochs": 2, "warmup_epochs": 3},
            "impossible setting: --warmup-epochs: expected at most 2, the epochs, found 3",
        ),
        ("kd", {"weight_decay": -1.0}, "impossible setting: --weight-decay: expected at least 0, found -1.0"),
    ],
)
def test_options_that_mean_nothing(recipe: str, option: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        recipe_named(recipe).defaults.override(recipe, option)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("option", "needed"),
    [
        ({"swad_converge": 2}, {"select": "swad"}),
        ({"swad_tolerance": 2}, {"select": "swad"}),
        ({"swad_ratio": 0.5}, {"select": "swad"}),
        ({"min_lr": 1e-5}, {"schedule": "cosine"}),
        ({"betas": (0.5, 0.9)}, {"optimizer": "adam"}),
        ({"embedding_weight": 2.0}, {"embedding_loss": "cosine"}),
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_that_would_change_nothing(option: dict[str, Any], needed: dict[str, str]) -> None:
    """Without the one that they belong to they were taken, and did nothing."""
    kd = recipe_named("kd").defaults
    others = {"select": "best", "schedule": "constant", "optimizer": "sgd", "embedding_loss": "none"}
    with pytest.raises(InputError) as error:
        kd.override("kd", {**others, **option})
    ((name, value),) = needed.items()
    assert error.value.code == "option-needs-another"
    assert str(error.value).startswith(f"{option_name(next(iter(option)))} means nothing here: ")
    assert str(error.value).endswith(f"Next: leave it out, or add {option_name(name)} {value}")
    kd.override("kd", {**others, **option, **needed})
    kd.override("kd", {**others, next(iter(option)): getattr(kd, next(iter(option)))})  # what it is without being said


def test_each_sample_once_an_epoch_takes_a_recipes_number_of_draws_back() -> None:
    vl2v = recipe_named("vl2v").defaults
    assert (vl2v.per_domain, vl2v.steps_per_epoch) == (32, 200)
    assert vl2v.override("vl2v", {"per_domain": 0}).steps_per_epoch == 0
    assert vl2v.override("vl2v", {"per_domain": 8}).steps_per_epoch == 200
    with pytest.raises(InputError, match="without --per-domain, an epoch is a pass over the corpus"):
        vl2v.override("vl2v", {"per_domain": 0, "steps_per_epoch": 3})


def test_promptkd_wants_good_weights(tiny_clip) -> None:
    recipe = recipe_named("promptkd")
    with pytest.raises(InputError) as error:
        build_student(StudentConfig(model="ViT-B-16"), recipe, recipe.defaults, vectors(), seed=0)
    assert str(error.value) == (
        "recipe promptkd keeps the student's weights as they are, so it needs good ones: ViT-B-16. Next: add "
        "--student-pretrained TAG or PATH; `--student-pretrained random` to try things out"
    )
    settings = recipe.defaults.override("promptkd", {"batch_size": 1})
    with pytest.raises(InputError) as refused:
        build_student(StudentConfig(model=f"local-dir:{tiny_clip}"), recipe, settings, vectors(), seed=0)
    assert (refused.value.code, str(refused.value.where)) == ("batch-too-small", "--batch-size")
    assert str(refused.value.expected).startswith("at")


def test_promptkd_shares_a_linear_heads_scale_and_bias(tiny_clip) -> None:
    recipe = recipe_named("promptkd")
    config = StudentConfig(model=f"local-dir:{tiny_clip}")
    own = build_student(config, recipe, recipe.defaults, vectors(), seed=0)
    assert own.logit_scale == pytest.approx(10.0)
    assert own.student.head.prompt_depth == 3  # of the 9 that are asked for: the student has no more blocks
    teacher = vectors(normalized=False)
    shared = build_student(config, recipe, recipe.defaults, teacher, seed=0)
    assert shared.logit_scale == 1.0
    assert not shared.student.head.normalized
    assert ClassHead(teacher, shared.logit_scale).bias_C is not None
