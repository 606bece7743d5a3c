"""What the trainer offers for real runs, each against the same thing written out in plain torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from teachonce.pipeline.storage import Location
from teachonce.pipeline.types import Timer
from teachonce.stages.models.class_head import ClassHead
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.pairs.stream import Batch
from teachonce.stages.recipes.registry import recipe_named
from teachonce.stages.training.build import build_student
from teachonce.stages.training.checkpoint import TrainState
from teachonce.stages.training.ema import Ema
from teachonce.stages.training.one_pass import train_on_one_pass
from teachonce.stages.training.trainer import Trainer
from teachonce.storage_schemas.class_vectors import ClassVectors
from teachonce.storage_schemas.errors import InputError
from teachonce.storage_schemas.fingerprint import Fingerprint

CPU = Compute(device="cpu", precision="fp32", threads=1)
BATCH, STEPS = 8, 3


class Memory:
    """The same few batches in every epoch."""

    steps_per_epoch = STEPS

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = [
            torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator) for _ in range(STEPS)
        ]
        self.logits = [torch.randn(BATCH, 7, generator=generator) for _ in range(STEPS)]

    def batches(self, epoch: int, first_sample: int = 0) -> Iterator[Batch]:
        for step in range(first_sample // BATCH, STEPS):
            yield Batch(self.images[step], {"logits": self.logits[step]}, torch.arange(BATCH))

    def close(self) -> None:
        return None


@pytest.fixture(scope="module")
def vectors() -> ClassVectors:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 6)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return ClassVectors(names=tuple("abcdefg"), vectors_CD=values, bias_C=None, logit_scale=10.0, normalized=True)


@pytest.fixture
def train(vectors, tiny_clip, tmp_path):
    """`train(**settings)`: a student (without batch norm) before and after two epochs of kd on `Memory`."""

    def one(*, student: str = f"local-dir:{tiny_clip}", compiled: bool = False, **changes):
        recipe = recipe_named("kd")
        # Not AdamW: where a gradient is zero but for rounding (keys' biases), it makes full steps of the rounding
        options = {
            "epochs": 2,
            "batch_size": BATCH,
            "schedule": "constant",
            "warmup_epochs": 0,
            "optimizer": "sgd",
            "lr": 0.05,
            **changes,
        }
        settings = recipe.defaults.override("kd", options)
        config = StudentConfig(model=student, size=None if "local-dir" in student else 32)
        built = build_student(config, recipe, settings, vectors, seed=0)
        before = copy.deepcopy(built.student)
        trainer = Trainer(
            student=built.student,
            recipe=recipe,
            settings=settings,
            teacher_logits=None,
            student_head=ClassHead(vectors, built.logit_scale),
            targets=("logits",),
            steps_per_epoch=STEPS,
            compute=CPU,
            seed=0,
            preprocess=built.backbone.preprocess,
            folder=Location.of(tmp_path / f"run{len(list(tmp_path.iterdir()))}"),
            fingerprint=Fingerprint(fields={}),
            compiled=compiled,
        )
        ((_, ended),) = train_on_one_pass({"student": (trainer, Timer())}, Memory(), show_progress=False)
        assert isinstance(ended, TrainState), ended
        return before, built.student

    return one


def plain_losses(student, vectors, images, logits):
    """Mean KL divergence over the samples, written out."""
    said = 10.0 * student(images) @ torch.from_numpy(vectors.vectors_CD).T
    p = logits.softmax(dim=1)
    return (p * (logits.log_softmax(dim=1) - said.log_softmax(dim=1))).sum(dim=1).mean()


def sgd(student):
    parameters = list(student.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def same(student, other, **tolerance):
    for name, value in student.state_dict().items():
        assert torch.allclose(value, other.state_dict()[name], **(tolerance or {"rtol": 1e-4, "atol": 1e-6})), name


def test_parts_of_a_batch_add_up_to_the_whole(train):
    _, whole = train()
    _, parts = train(accumulate=4)
    same(whole, parts, rtol=1e-3, atol=2e-5)
    changed = max(
        float((a - b).abs().max())
        for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True)
    )
    assert changed > 0  # it was in parts


def test_gradients_are_clipped_as_torch_clips_them(train, vectors):
    student, clipped = train(clip_norm=0.05, lr=0.5, weight_decay=0.0)
    stream, student = Memory(), student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5, momentum=0.9)
    norms = []
    for step in range(2 * STEPS):
        optimizer.zero_grad()
        plain_losses(student, vectors, stream.images[step % STEPS], stream.logits[step % STEPS]).backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in student.parameters()))
        norms.append(float(norm))
        for parameter in student.parameters():
            parameter.grad *= min(1.0, 0.05 / (float(norm) + 1e-6))
        optimizer.step()
    assert min(norms) > 0.05
    same(student, clipped, rtol=1e-4, atol=1e-5)


def test_the_moving_average_is_what_the_bundle_gets(train, vectors):
    student, averaged = train(ema=0.8)
    stream, student = Memory(), student.train()
    average = {name: value.clone() for name, value in student.state_dict().items()}
    optimizer = sgd(student)
    for step in range(2 * STEPS):
        optimizer.zero_grad()
        plain_losses(student, vectors, stream.images[step % STEPS], stream.logits[step % STEPS]).backward()
        optimizer.step()
        for name, value in student.state_dict().items():
            average[name] = 0.8 * average[name] + 0.2 * value
    for name, value in averaged.state_dict().items():
        assert torch.allclose(value, average[name], rtol=1e-4, atol=1e-5), name
    assert not torch.allclose(averaged.projector.weight, student.projector.weight, atol=1e-4)


def test_the_average_covers_batch_norm(vectors):
    recipe = recipe_named("kd")
    built = build_student(StudentConfig(model="timm:test_resnet", size=32), recipe, recipe.defaults, vectors, seed=0)
    ema = Ema(built.student, 0.9)
    name = next(n for n in ema.tensors if n.endswith("running_mean"))
    counter = next(n for n in ema.tensors if n.endswith("num_batches_tracked"))
    built.student.train()(torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
    ema.update()
    state = built.student.state_dict()
    assert torch.allclose(ema.tensors[name], 0.1 * state[name])
    assert ema.tensors[counter] == state[counter] == 1


@pytest.mark.slow
def test_compiled_steps_are_the_same_steps(train):
    _, plain = train()
    _, compiled = train(compiled=True)
    same(plain, compiled, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"accumulate": 3},
            "impossible setting: --batch-size: expected a multiple of 3, the parts of --accumulate, found 8",
        ),
        ({"ema": 1.0}, "impossible setting: --ema: expected less than 1, found 1.0"),
        ({"clip_norm": -1.0}, "impossible setting: --clip-norm: expected at least 0, found -1.0"),
    ],
)
def test_impossible_settings(options, text):
    with pytest.raises(InputError) as error:
        recipe_named("kd").defaults.override("kd", {"batch_size": 8, **options})
    assert str(error.value) == text


def test_batch_norm_needs_two_samples_in_each_part(vectors):
    recipe = recipe_named("kd")
    settings = recipe.defaults.override("kd", {"batch_size": 4, "accumulate": 4})
    with pytest.raises(InputError) as error:
        build_student(StudentConfig(model="timm:test_resnet", size=32), recipe, settings, vectors, seed=0)
    assert (error.value.code, str(error.value.expected), str(error.value.found)) == (
        "batch-too-small",
        "at least 8",
        "4",
    )
