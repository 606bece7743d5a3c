"""The whole of PromptKD, stage I and II, step for step against its published recipe written out (tests/published.py).

Same random weights, data and views: both sides see the same pixels; everything else is computed twice, here in fp64.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.cache import plan_cache
from teachonce.stages.distill import plan_distill
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.pretrain import plan_pretrain
from teachonce.stages.pretraining.settings import PretrainSettings
from teachonce.stages.pretraining.tuner import Tuner
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.settings.few_shot import FewShotSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.training.trainer import Trainer
from teachonce.stages.vectors import plan_vectors
from teachonce.stages.views.spec import ViewSpec

CPU = Compute(device="cpu", precision="fp32", threads=1)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
STEPS = 10
NAMES = ["red_fox", "house cat", "polar bear", "jay"]

#: Vision blocks, vision width, vision heads, text blocks, text width, text heads, channels.
TEACHER, STUDENT = (4, 48, 3, 3, 32, 2, 16), (3, 32, 2, 1, 16, 1, 12)


def write_clip(folder, sizes, seed):
    """An open_clip `local-dir:` folder with random weights, larger than at initialisation, so that all parts matter."""
    layers, width, heads, text_layers, text_width, text_heads, embed_dim = sizes
    config = {
        "embed_dim": embed_dim,
        "vision_cfg": {
            "image_size": 32,
            "layers": layers,
            "width": width,
            "head_width": width // heads,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": text_width,
            "heads": text_heads,
            "layers": text_layers,
        },
    }
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config)
    with torch.no_grad():
        model.token_embedding.weight.mul_(10)
        model.logit_scale.fill_(np.log(20.0))
    folder.mkdir()
    preprocess = {"size": 32, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return {name: value.double() for name, value in model.state_dict().items()}


def run(stage):
    run_stage(stage, stage.out if hasattr(stage, "out") else stage.store, SerialExecutor(), progress=False)


def spy(monkeypatch, owner, trained, watch):
    """Let `watch(before, after, loss, given, named)` see every step of a trainer; weights as copies by name."""
    original = owner.step

    def step(self, *given, **named):
        before = {name: p.detach().double() for name, p in trained(self).items()}
        said = original(self, *given, **named)
        watch(before, {name: p.detach().double() for name, p in trained(self).items()}, said, given, named)
        return said

    monkeypatch.setattr(owner, "step", step)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, miniature):
    """Both stages by their real code: 2 shots-steps an epoch and 4 distillation steps an epoch, 20 epochs each."""
    root = tmp_path_factory.mktemp("whole")
    miniature.build(root / "data", "oxford_pets", classes=NAMES, per_class={"train": 8, "val": 1, "test": 1})
    train, names = f"coop:oxford_pets/train={root}/data", f"coop:oxford_pets={root}/data"
    found = SimpleNamespace(
        root=root,
        one=[],
        two=[],
        teacher=write_clip(root / "teacher", TEACHER, 1),
        student=write_clip(root / "student", STUDENT, 2),
    )
    with pytest.MonkeyPatch.context() as patch:
        spy(
            patch,
            Tuner,
            lambda t: t.clip.trained(),
            lambda *seen: found.one.append(
                SimpleNamespace(
                    before=seen[0], after=seen[1], terms=seen[2], images=seen[3][1], labels=seen[3][2], lr=seen[4]["lr"]
                )
            ),
        )
        stage = plan_pretrain(
            train,
            TeacherConfig(model=f"local-dir:{root}/teacher"),
            out=str(root / "prompts"),
            few=FewShotSettings(classes=names, base_classes="@half", shots=4, seed=1),
            settings=PretrainSettings(batch_size=4),
            compute=CPU,
            show_progress=False,
        )
        run(stage)
    teacher = TeacherConfig(model=f"teachonce:{root}/prompts")
    run(plan_shard([train], out=str(root / "shards"), settings=ShardSettings(shard_size=10)))
    run(plan_vectors(teacher, out=str(root / "store"), compute=CPU))
    run(
        plan_cache(
            str(root / "shards"),
            teacher,
            out=str(root / "store"),
            views=ViewSpec(kind="random_resized_crop", count=20),
            settings=CacheSettings(targets="embedding", encoding="fp32", batch_size=40),
            compute=CPU,
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        spy(
            patch,
            Trainer,
            lambda t: t.student.trained(),
            lambda *seen: found.two.append(
                SimpleNamespace(
                    before=seen[0], after=seen[1], loss=seen[2], images=seen[3][1], targets=seen[3][2], lr=seen[4]["lr"]
                )
            ),
        )
        run(
            plan_distill(
                str(root / "shards"),
                str(root / "store"),
                StudentConfig(model=f"local-dir:{root}/student"),
                out=str(root / "bundle"),
                recipe="promptkd",
                options={},
                compute=CPU,
                settings=DistillSettings(seed=3),
                show_progress=False,
            )
        )
    found.prompts = safetensors.torch.load_file(root / "prompts" / "prompts.safetensors")
    return found


def pixels(images_NCHW):
    mean, std = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in (MEAN, STD))
    return (images_NCHW.double() / 255 - mean) / std


def ids(texts):
    return open_clip.SimpleTokenizer(context_length=16)(texts)


def close(found, expected):
    """Equal to 1e-5 of the largest number; fp32 has no more for those that nearly cancel."""
    off = (found.double() - expected).abs().max() / expected.abs().max()
    assert off < 1e-5, off.item()


def test_stage_one(trained, published):
    base = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES[:2]]
    vision, text = published.part(trained.teacher, "visual."), trained.teacher
    scale = trained.teacher["logit_scale"].exp()
    templates = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES[:60]]
    plain_text_CD = published.unit(
        torch.stack(
            [
                published.text_features(
                    text, [], ids([t.replace("{}", name.replace("_", " ")) for t in templates]), 2
                ).mean(0)
                for name in NAMES[:2]
            ]
        )
    )
    prompts = {name: value.clone().requires_grad_() for name, value in trained.one[0].before.items()}
    words = text["token_embedding.weight"][ids(["a photo of a"])[0, 1:5]]
    close(prompts["text_prompts_LPD"][0].detach(), words)
    assert {name: tuple(value.shape) for name, value in prompts.items()} == {
        "vision_prompts_LPD": (4, 4, 48),
        "text_prompts_LPD": (3, 4, 32),
    }
    sgd = published.Sgd(prompts)
    for step, seen in enumerate(trained.one[:STEPS]):
        images_NCHW = pixels(seen.images)
        image_ND = published.unit(published.image_features(vision, list(prompts["vision_prompts_LPD"]), images_NCHW, 3))
        text_CD = published.unit(published.text_features(text, list(prompts["text_prompts_LPD"]), ids(base), 2))
        plain_image_ND = published.unit(published.image_features(vision, [], images_NCHW, 3))
        loss = published.promptsrc_loss(image_ND, text_CD, plain_image_ND, plain_text_CD, scale, seen.labels)
        close(seen.terms["loss"], loss.detach())
        loss.backward()
        sgd.step(published.learning_rate(step // 2, 0.005))
        for name, value in prompts.items():
            close(seen.after[name], value.detach())
    moved = (prompts["vision_prompts_LPD"] - trained.one[0].before["vision_prompts_LPD"]).abs().max()
    assert moved > 1e-4  # else all of this would say little


def test_stage_ones_learning_rates_and_average(trained, published):
    assert len(trained.one) == 40
    for epoch in range(20):
        rates = [seen.lr for seen in trained.one[2 * epoch : 2 * epoch + 2]]
        assert rates == pytest.approx([published.learning_rate(epoch, 0.005)] * 2, rel=1e-12)
    weights = np.exp(-((np.arange(20) - 14.0) ** 2) / 2)
    for name, found in trained.prompts.items():
        ends = torch.stack([trained.one[2 * epoch + 1].after[name] for epoch in range(20)])
        expected = torch.tensordot(torch.from_numpy(weights / weights.sum()), ends, 1)
        close(found, expected)
        assert not torch.allclose(found.double(), ends[-1], rtol=1e-5)


def test_stage_two(trained, published):
    """Student features, teacher logits, loss, and weights after ten steps, with the teacher in the loop."""
    teacher_vision, student_vision = (published.part(w, "visual.") for w in (trained.teacher, trained.student))
    prompts = {name: list(value.double()) for name, value in trained.prompts.items()}
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    class_vectors_CD = published.unit(
        published.text_features(trained.teacher, prompts["text_prompts_LPD"], ids(texts), 2)
    )
    teacher_scale, student_scale = (w["logit_scale"].exp() for w in (trained.teacher, trained.student))
    weights = {name: value.clone().requires_grad_() for name, value in trained.two[0].before.items()}
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "backbone.prompts_LPD": (3, 4, 32),
        "projector.0.weight": (16, 12),
        "projector.0.bias": (16,),
        "projector.1.weight": (16,),
        "projector.1.bias": (16,),
        "projector.3.weight": (16, 16),
        "projector.3.bias": (16,),
    }
    sgd = published.Sgd(weights)
    for step, seen in enumerate(trained.two[:STEPS]):
        images_NCHW = pixels(seen.images)
        embedding_ND = published.unit(
            published.image_features(teacher_vision, prompts["vision_prompts_LPD"], images_NCHW, 3)
        )
        teacher_NC = teacher_scale * embedding_ND @ class_vectors_CD.T
        close(teacher_scale * seen.targets["embedding"].double() @ class_vectors_CD.T, teacher_NC)
        features_ND = published.image_features(student_vision, list(weights["backbone.prompts_LPD"]), images_NCHW, 2)
        projected_ND = published.unit(published.project(features_ND, published.part(weights, "projector.")))
        loss = 1000 * published.divergence(teacher_NC, student_scale * projected_ND @ class_vectors_CD.T)
        close(seen.loss, loss.detach())
        loss.backward()
        sgd.step(published.learning_rate(step // 4, 0.005))
        for name, value in weights.items():
            close(seen.after[name], value.detach())
    assert len(trained.two) == 80
    for epoch in range(20):
        rates = [seen.lr for seen in trained.two[4 * epoch : 4 * epoch + 4]]
        assert rates == pytest.approx([published.learning_rate(epoch, 0.005)] * 4, rel=1e-12)
