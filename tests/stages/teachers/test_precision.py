"""Teachers with weights in bf16: every kind has autocast's distance to fp32, and the teacher itself stays as it is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from teachonce.pipeline.storage import Location
from teachonce.stages.models.compute import Compute, resolve_compute, teacher_compute, training_compute
from teachonce.stages.models.settings import AUTOCAST, WEIGHTS, ComputeSettings
from teachonce.stages.models.weights import weights_digest
from teachonce.stages.prompts.folder import write_prompts
from teachonce.stages.teachers import Teacher, TeacherConfig, load_teacher
from teachonce.stages.teachers.base import BaseTeacher
from teachonce.stages.teachers.placing import place, settle_precision
from teachonce.storage_schemas.prompts import PromptsConfig

CPU = {name: Compute(device="cpu", precision=name, threads=1) for name in ("fp32", AUTOCAST, WEIGHTS)}

#: Images towers of open_clip's registry, and timm models with layer norms, batch norms and both.
CLIP = {
    "VisionTransformer": "ViT-B-32-quickgelu",
    "ModifiedResNet": "RN50",
    "ConvNeXt": "convnext_base",
    "SigLIP": "ViT-B-16-SigLIP",
    "CoCa": "coca_ViT-B-32",
}
TIMM = ("test_vit", "test_convnext", "test_efficientnet", "test_resnet", "test_nfnet", "levit_128s")

#: Those whose sums of branches are in bf16 under autocast too: only there a layer norm rounds otherwise.
IN_BF16 = ("VisionTransformer", "CoCa", "prompts")


@pytest.fixture(params=[*CLIP, *TIMM, "prompts"])
def kind(request) -> str:
    return str(request.param)


@pytest.fixture
def teacher(kind, request, tmp_path, clip_kinds) -> Teacher:
    if kind in TIMM:
        return load_teacher(TeacherConfig.of(f"timm:{kind}", "random"))
    if kind == "prompts":
        tiny = request.getfixturevalue("tiny_clip")
        return load_teacher(TeacherConfig.of(f"teachonce:{_prompts(tiny, tmp_path)}"))
    config = clip_kinds.shrink(CLIP[kind], tmp_path / "texts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = clip_kinds.write_model(tmp_path / "model", config, {})
        return load_teacher(TeacherConfig.of(f"local-dir:{folder}"))


def _prompts(model: Path, tmp_path: Path) -> Path:
    spec = load_teacher(TeacherConfig.of(f"local-dir:{model}")).spec
    generator = torch.Generator().manual_seed(0)
    prompts = {
        "vision_prompts_LPD": torch.randn(2, 2, 32, generator=generator),
        "text_prompts_LPD": torch.randn(1, 2, 16, generator=generator),
    }
    config = PromptsConfig(
        backbone={
            "model": f"local-dir:{model}",
            "pretrained": None,
            "architecture": spec.architecture,
            "weights": spec.weights_digest,
            "preprocess": {},
        },
        shape={"vision_length": 2, "vision_depth": 2, "text_length": 2, "text_depth": 1},
        context="a photo",
        class_names=("a", "b"),
        base_classes=("a",),
        origin={},
    )
    write_prompts(Location.of(tmp_path / "p"), prompts, config)
    return tmp_path / "p"


def outputs(teacher: Teacher, compute: Compute, images_NCHW: torch.Tensor) -> dict[str, torch.Tensor]:
    names = [offer.name for offer in teacher.offers()]
    names = ["embedding", *names[1:2], *(["tokens"] if "tokens" in names else [])]
    with compute.inference():
        placed = place(teacher, compute)
        return placed.outputs(images_NCHW, names) | {"embed": placed.embed(images_NCHW)}


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The mean of 1 - cosine of whole outputs."""
    cosines = torch.nn.functional.cosine_similarity(one.double().flatten(1), other.double().flatten(1))
    return float((1 - cosines).mean())


def test_every_kind_has_autocasts_distance_to_fp32(teacher, kind):
    size = teacher.spec.preprocess.size
    coarse = torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(3)) * 255
    images_NCHW = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 255).byte()
    found = {name: outputs(teacher, compute, images_NCHW) for name, compute in CPU.items()}
    for name, expected in found["fp32"].items():
        ours, autocast = found[WEIGHTS][name], found[AUTOCAST][name]
        assert ours.dtype == torch.float32
        if kind not in IN_BF16:
            assert torch.equal(ours, autocast), name
        else:
            assert 0 < distance(ours, expected) <= 1.3 * distance(autocast, expected), name
            assert distance(ours, expected) < 1e-4


def test_the_teacher_itself_keeps_its_weights(tiny_clip_teacher):
    teacher: Any = load_teacher(TeacherConfig.of(f"local-dir:{tiny_clip_teacher}"))
    vectors = teacher.class_vectors(("a", "b"), ("{}",))
    placed: Any = place(teacher, CPU[WEIGHTS])
    assert placed.spec == teacher.spec
    assert weights_digest(teacher.model) == teacher.spec.weights_digest
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float32}
    assert placed.model.visual.conv1.weight.dtype == placed.model.visual.proj.dtype == torch.bfloat16
    assert placed.model.token_embedding is teacher.model.token_embedding, "the text tower is not copied"
    assert (placed.class_vectors(("a", "b"), ("{}",)).vectors_CD == vectors.vectors_CD).all()
    for name in ("fp32", AUTOCAST):
        assert place(teacher, CPU[name]) is teacher


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("model", ["ViT-B-32", "timm:test_vit", "timm:test_efficientnet"])
def test_on_cuda_it_has_autocasts_distance_too(model):
    teacher: Any = load_teacher.__wrapped__(TeacherConfig.of(model, "random"))
    size = teacher.spec.preprocess.size
    images_NCHW = torch.randint(0, 256, (16, 3, size, size), dtype=torch.uint8, device="cuda")
    found = {}
    for name in (WEIGHTS, AUTOCAST, "fp32"):  # the first leaves the model itself where it is
        compute = Compute(device="cuda", precision=name, threads=1)
        placed = place(teacher, compute)
        with compute.inference():
            found[name] = placed.embed(images_NCHW)
            assert torch.equal(placed.embed(images_NCHW), found[name])
    assert 0 < distance(found[WEIGHTS], found["fp32"]) <= 1.5 * distance(found[AUTOCAST], found["fp32"])


class Own(BaseTeacher):
    """A user's own teacher, as an entry point gives it."""

    def to(self, device: torch.device) -> Teacher:
        return self  # type: ignore[return-value]


def test_a_teacher_without_such_a_copy_computes_under_autocast():
    own: Any = Own()
    compute, notes = settle_precision(own, CPU[WEIGHTS], None)
    assert (compute, place(own, compute)) == (CPU[AUTOCAST], own)
    assert notes == (
        "this teacher has no copy with weights in bf16: it computes under autocast (--precision amp_bf16)",
    )
    for name in ("fp32", AUTOCAST):
        assert settle_precision(own, CPU[name], None) == (CPU[name], ())


def test_what_each_command_makes_of_a_precision(monkeypatch):
    def settled(settle: Any) -> list[str]:
        names = ("auto", "bf16", "amp_bf16", "fp32")
        return [settle(ComputeSettings(device="cpu", precision=name, threads=1)).precision for name in names]

    for faster in (True, False):
        monkeypatch.setattr("teachonce.stages.models.compute._bf16_is_faster", lambda device, faster=faster: faster)
        assert settled(teacher_compute) == [WEIGHTS if faster else "fp32", WEIGHTS, AUTOCAST, "fp32"]
        assert settled(resolve_compute) == [AUTOCAST if faster else "fp32", AUTOCAST, AUTOCAST, "fp32"]
        assert settled(training_compute) == ["fp32", AUTOCAST, AUTOCAST, "fp32"]
    assert CPU[AUTOCAST].to_json() == {"device": "cpu", "precision": "bf16", "threads": 1}, (
        "as earlier versions recorded it"
    )
    assert CPU[WEIGHTS].to_json() == {"device": "cpu", "precision": "bf16_weights", "threads": 1}
