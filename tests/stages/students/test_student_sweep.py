"""Every kind of student: built, trained, written and loaded again, and at each end the library's own model.

What is trained is compared with timm's or open_clip's model as they build it, images normalised by hand, channels
first: the student may lie otherwise in memory, but says the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import timm
import torch
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.storage import Location
from teachonce.stages.models.class_head import ClassHead
from teachonce.stages.students.bundle import load_student, write_bundle
from teachonce.stages.students.family import Backbone
from teachonce.stages.students.head import Head
from teachonce.stages.students.registry import family_of
from teachonce.stages.students.student import Student
from teachonce.storage_schemas.bundle import BundleConfig
from teachonce.storage_schemas.class_vectors import ClassVectors
from torch import Tensor, nn
from torch.nn import functional as F

#: timm's models by family, and the size of the images; a family is in its smallest model.
TIMM = {
    "resnet18": 64,
    "resnet26d": 64,
    "resnext26ts": 64,
    "efficientnet_b0": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_035": 64,
    "repvgg_a0": 128,
    "mobileone_s0": 128,
    "fastvit_t8": 128,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 64,
    "deit_tiny_distilled_patch16_224": 64,  # two heads
    "levit_128s": 160,  # two heads; relative positions of one size
    "swin_tiny_patch4_window7_224": 64,  # windows that the size changes
    "coatnet_pico_rw_224": 64,
    "efficientformerv2_s0": 64,  # two heads
    "tiny_vit_5m_224": 64,
    "regnety_002": 64,
    "ghostnet_050": 64,
    "edgenext_xx_small": 64,
    "repvit_m0_9": 64,  # two heads
    "gernet_s": 64,
}

TRUNK = {"timm_model_pretrained": False, "timm_drop": 0.0, "timm_drop_path": 0.0}
#: open_clip's image towers by kind; `image_size` is the size of the images.
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "VisionTransformer": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "ModifiedResNet": {"image_size": 64, "patch_size": None, "width": 16, "layers": [1, 1, 1, 1], "head_width": 16},
    "ConvNeXt": {**TRUNK, "image_size": 64, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
    "SigLIP": {**TRUNK, "image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
    "EVA02": {
        **TRUNK,
        "image_size": 224,
        "timm_model_name": "eva02_tiny_patch14_224",
        "timm_pool": "token",
        "timm_proj": None,
    },
    "MobileCLIP": {**TRUNK, "image_size": 128, "timm_model_name": "fastvit_t8", "timm_pool": "avg", "timm_proj": None},
    "ViTamin": {
        **TRUNK,
        "image_size": 224,
        "timm_model_name": "vitamin_small_224",
        "timm_pool": "",
        "timm_proj": "linear",
    },
    "CoCa": {
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "layers": 2,
        "head_width": 16,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
}
#: Trunks whose smallest model takes large images are built at a smaller size, as `--student-size` does.
RESIZED = {"EVA02": 56, "ViTamin": 64}
WIDTHS = {"SigLIP": 96}  # of a trunk without a projection
CLASSES = ("a", "b", "c", "d", "e")


def open_clip_folder(kind: str, folder: Path) -> Path:
    """A `local-dir:` folder without weights."""
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 1, "layers": 1}
    config = {
        "embed_dim": WIDTHS.get(kind, 8),
        "vision_cfg": OPEN_CLIP[kind],
        "text_cfg": text,
        "custom_text": True,
    }
    if kind == "CoCa":
        config["multimodal_cfg"] = {**text, "attn_pooler_heads": 1}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return folder


@pytest.fixture
def class_vectors() -> ClassVectors:
    vectors_CD = np.random.default_rng(3).normal(size=(len(CLASSES), 6)).astype(np.float32)
    vectors_CD /= np.linalg.norm(vectors_CD, axis=1, keepdims=True)
    return ClassVectors(names=CLASSES, vectors_CD=vectors_CD, bias_C=None, logit_scale=10.0, normalized=True)


def images_of(size: int, count: int, seed: int) -> Tensor:
    """uint8 (N, 3, size, size): smooth, each of its own brightness, so that students tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * torch.linspace(0.2, 1, count).view(-1, 1, 1, 1)
    return (F.interpolate(coarse, size=size, mode="bilinear") * 255).to(torch.uint8)


def train(student: Student, vectors: ClassVectors, size: int) -> list[float]:
    """Two steps of knowledge distillation against random targets."""
    class_head = ClassHead(vectors)
    student.train()
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.9  # averages as after many steps; otherwise deep nets still give zeros in eval mode
    optimizer = torch.optim.AdamW(student.trained().values(), 1e-4)
    losses = []
    for step in range(2):
        targets_NC = torch.softmax(torch.randn(4, 5, generator=torch.Generator().manual_seed(step)), 1)
        log_NC = class_head(student(images_of(size, 4, seed=step))).log_softmax(1)
        loss = F.kl_div(log_NC, targets_NC, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        without = [name for name, p in student.trained().items() if p.grad is None or not p.grad.isfinite().all()]
        assert without == []  # processes that train together wait for every gradient
        optimizer.step()
        losses.append(loss.item())
    return losses


def as_the_library_says(plain: nn.Module, state: dict[str, Tensor], backbone: Backbone, images: Tensor) -> Tensor:
    """Embeddings by the library's own image tower, in eval mode, with the state of a trained student."""
    own = {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}
    plain.load_state_dict(own)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.preprocess.mean, backbone.preprocess.std))
    with torch.no_grad():
        features = plain.eval()((images / 255 - mean) / std)
        features = features[0] if isinstance(features, tuple) else features
        return F.normalize(features @ state["projector.weight"].T + state["projector.bias"], dim=1)


def check(name: str, plain: nn.Module, vectors: ClassVectors, folder: Path, size: int | None, tolerance: float) -> None:
    backbone = family_of(name).create(name, "random", seed=1, size=size)
    torch.manual_seed(2)
    head = Head(width=backbone.width, embed_dim=6, projector="linear", normalized=True)
    student = Student(backbone.module, backbone.preprocess, head)
    size = backbone.preprocess.size
    starting = {n: v.clone() for n, v in student.state_dict().items()}
    losses = train(student, vectors, size)
    assert np.isfinite(losses).all()
    now = student.state_dict()
    moved = [n for n in student.trained() if not torch.equal(starting[n], now[n])]
    assert len(moved) > 0.8 * len(student.trained())  # biases in front of batch norm and of softmax need not
    config = BundleConfig(
        student=backbone.config,
        head=head.to_json(),
        preprocess=backbone.preprocess.to_json(),
        class_names=CLASSES,
        logit_scale=10.0,
        normalized=True,
        origin={},
    )
    write_bundle(Location.of(folder), student, vectors, config)
    loaded = load_student(folder)  # type: ignore[arg-type]
    assert loaded.preprocess == backbone.preprocess
    state = loaded.student.state_dict()
    assert list(state) == list(starting)
    assert all(torch.equal(state[n], value) for n, value in student.state_dict().items())
    images = images_of(size, 3, seed=9)
    with torch.no_grad():
        trained, again = student.eval()(images), loaded.student(images)
    expected = as_the_library_says(plain, state, backbone, images)
    assert (trained - again).abs().max() <= tolerance
    assert trained.std(0).max() > 1e-5  # it tells images apart, or the rest says nothing
    torch.testing.assert_close(trained, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", TIMM)
def test_timm_students(name: str, class_vectors, tmp_path) -> None:
    size = TIMM[name]
    sized = {"img_size": size} if timm.models.get_pretrained_cfg_value(name, "fixed_input_size") else {}
    plain = timm.create_model(name, num_classes=0, **sized)
    check(f"timm:{name}", plain, class_vectors, tmp_path / "b", size, tolerance=0)


@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_open_clip_students(kind: str, class_vectors, tmp_path) -> None:
    name = f"local-dir:{open_clip_folder(kind, tmp_path / kind)}"
    whole = open_clip.create_model(name, load_weights=False)
    if kind in RESIZED:
        whole.visual.set_input_size(RESIZED[kind])
    # Their poolers attend across: there torch (SigLIP: to 2.10) multiplies otherwise where weights take no gradient, as
    # those of a loaded student.
    tolerance = 1e-6 if kind in ("CoCa", "SigLIP") else 0
    check(name, whole.visual, class_vectors, tmp_path / "b", RESIZED.get(kind), tolerance)


# --- the command


@pytest.mark.parametrize("student", ["timm:mobileone_s0", "timm:vit_tiny_patch16_224", "MobileCLIP"])
def test_the_command_trains_them(student: str, taught_store, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    if student in OPEN_CLIP:
        folder = open_clip_folder(student, tmp_path / "model")
        student = f"local-dir:{folder}"
        plain = open_clip.create_model(student, load_weights=False).visual
    else:
        sized = {"img_size": 64} if "vit" in student else {}
        plain = timm.create_model(student.removeprefix("timm:"), num_classes=0, **sized)
    options = {
        "--student": student,
        "--student-pretrained": "random",
        "--student-size": "64",
        "--recipe": "kd",
        "--out": "b",
        "--epochs": "1",
        "--batch-size": "16",
        "--threads": "1",
        "--decode-workers": "0",
    }
    command = ["distill", str(taught_store.shards.location), str(taught_store.location)]
    done = CliRunner().invoke(main, [*command, *(word for pair in options.items() for word in pair)])
    assert done.exit_code == 0, done.output
    [line] = (tmp_path / "b" / "run" / "log.jsonl").read_text().splitlines()
    assert 0 < json.loads(line)["loss"] < 100
    loaded = load_student("b")
    backbone = family_of(student).create(student, "random", seed=0, size=64)
    assert loaded.preprocess == backbone.preprocess
    weights = safetensors.torch.load_file(tmp_path / "b" / "model.safetensors")
    starting = {f"backbone.{n}": v for n, v in backbone.module.state_dict().items()}
    assert sum(not torch.equal(weights[n], v) for n, v in starting.items()) > 0.8 * len(starting)
    images = images_of(64, 3, seed=9)
    expected = as_the_library_says(plain, weights, backbone, images)
    torch.testing.assert_close(loaded.student(images), expected, atol=1e-5, rtol=0)
