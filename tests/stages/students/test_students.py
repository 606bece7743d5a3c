"""Students: built as their libraries build them, without text towers, and again from their bundle alone."""

from __future__ import annotations

import json
import pickle
import shutil
import socket

import numpy as np
import open_clip
import pytest
import safetensors.torch
import timm
import torch
from teachonce.pipeline.storage import Location
from teachonce.stages.models.class_head import ClassHead
from teachonce.stages.models.weights import weights_digest
from teachonce.stages.students.bundle import load_student, write_bundle
from teachonce.stages.students.family import Backbone
from teachonce.stages.students.head import Head
from teachonce.stages.students.registry import family_of, rebuild_backbone
from teachonce.stages.students.student import Student
from teachonce.storage_schemas.bundle import BundleConfig
from teachonce.storage_schemas.class_vectors import ClassVectors
from teachonce.storage_schemas.errors import DamagedError, IncompleteError, InputError, MismatchError
from torch import nn


def create(name: str, pretrained: str | None = None, *, seed: int = 0, size: int | None = None) -> Backbone:
    return family_of(name).create(name, pretrained, seed=seed, size=size)


def pixels(size: int, count: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def vectors(embed_dim: int, *, normalized: bool = True) -> ClassVectors:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(3, embed_dim)).astype(np.float32)
    bias = None if normalized else rng.normal(size=3).astype(np.float32)
    return ClassVectors(names=("x", "y", "z"), vectors_CD=values, bias_C=bias, logit_scale=7.0, normalized=normalized)


def head(width: int, **changes) -> Head:
    return Head(**{"width": width, "embed_dim": 6, "projector": "linear", "normalized": True, **changes})


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# --- open_clip


def test_an_open_clip_student_is_the_image_tower_and_nothing_else(tiny_clip, monkeypatch) -> None:
    whole = open_clip.create_model(f"local-dir:{tiny_clip}").eval()

    def refuse(*_args, **_kwargs):
        raise AssertionError("a text tower was built")

    monkeypatch.setattr("open_clip.model.TextTransformer", refuse)
    monkeypatch.setattr("open_clip.model._build_text_tower", refuse)
    backbone = create(f"local-dir:{tiny_clip}")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone.module.eval()(images), whole.encode_image(images))
    assert backbone.width == 5
    assert backbone.logit_scale == pytest.approx(10.0)
    assert backbone.preprocess.to_json() == {
        "size": 32,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.4],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
    assert backbone.config["name"] == "local-dir:tiny"
    assert str(tiny_clip) not in json.dumps(backbone.config) + backbone.weights


def test_random_weights_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (create("timm:test_resnet", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_digest(first.module) == weights_digest(again.module) != weights_digest(other.module)
    assert first.weights == "random, seed 3"


@pytest.mark.parametrize("ending", ["safetensors", "pt", "bin"])
def test_weights_from_a_file(tiny_clip, tmp_path, ending: str) -> None:
    state = safetensors.torch.load_file(tiny_clip / "open_clip_model.safetensors")
    state = {name: value + 0.5 for name, value in state.items()}
    path = tmp_path / f"w.{ending}"
    if ending == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{n}": v for n, v in state.items()}}, path)
    backbone = create(f"local-dir:{tiny_clip}", str(path))
    own = backbone.module.state_dict()
    assert all(torch.equal(own[name], state[f"visual.{name}"]) for name in own)
    assert backbone.logit_scale == pytest.approx(10.0 * np.exp(0.5))
    assert backbone.weights == f"w.{ending}"


def test_another_image_size_resizes_positions_as_open_clip_does(tiny_clip) -> None:
    whole = open_clip.create_model(f"local-dir:{tiny_clip}", force_image_size=48)
    backbone = create(f"local-dir:{tiny_clip}", size=48)
    assert backbone.preprocess.size == 48
    assert weights_digest(backbone.module) == weights_digest(whole.visual)
    assert backbone.module(torch.zeros(1, 3, 48, 48)).shape == (1, 5)


def test_a_tag_decides_the_activation(tiny_clip, monkeypatch) -> None:
    # `openai` weights were trained with QuickGELU; open_clip only warns when the name does not say so.
    path = str(tiny_clip / "open_clip_model.safetensors")
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda cfg: path)
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setattr("open_clip.get_model_config", lambda name: config)
    backbone = create("ViT-B-32", "openai")
    assert backbone.config["quick_gelu"] is True
    assert type(backbone.module.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_a_timm_trunk_inside_open_clip(tmp_path, no_network) -> None:
    config = {
        "embed_dim": 5,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": True},
        "text_cfg": {},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    backbone = create(f"local-dir:{tmp_path}", "random", size=64)
    assert backbone.module(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    again = rebuild_backbone(backbone.config)
    again.load_state_dict(backbone.module.state_dict())
    assert again(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_a_captioning_tower_gives_its_pooled_features(tmp_path) -> None:
    vision = {
        "image_size": 32,
        "patch_size": 16,
        "width": 32,
        "layers": 1,
        "head_width": 16,
        "attentional_pool": True,
        "attn_pooler_heads": 1,
        "output_tokens": True,
    }
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    backbone = create(f"local-dir:{tmp_path}", "random")
    student = Student(backbone.module, backbone.preprocess, head(8)).eval()
    assert student(pixels(32)).shape == (4, 6)


# --- timm


def test_a_timm_student_is_timm_without_its_classifier() -> None:
    backbone = create("timm:test_efficientnet", seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = timm.create_model("test_efficientnet", num_classes=0)
    assert weights_digest(backbone.module) == weights_digest(expected)
    images = torch.randn(2, 3, 160, 160)
    assert torch.equal(backbone.module.eval()(images), expected.eval()(images))
    assert backbone.width == expected.num_features
    assert backbone.logit_scale is None
    config = timm.data.resolve_data_config(model=expected)
    assert backbone.preprocess.size == config["input_size"][1]
    assert backbone.preprocess.crop_pct == config["crop_pct"]


def test_timm_weights_with_a_classifier_by_name_and_by_order(tmp_path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        whole = timm.create_model("test_resnet", num_classes=11)
    state = whole.state_dict()
    safetensors.torch.save_file(state, tmp_path / "named.safetensors")
    ported = {f"port_{i}.{name.rpartition('.')[2]}": value for i, (name, value) in enumerate(state.items())}
    torch.save(ported, tmp_path / "ordered.pth")
    for file in ("named.safetensors", "ordered.pth"):
        own = create("timm:test_resnet", str(tmp_path / file)).module.state_dict()
        assert all(torch.equal(own[name], state[name]) for name in own), file


def test_a_timm_student_of_another_size(tmp_path) -> None:
    assert create("timm:test_resnet", size=48).preprocess.size == 48
    vit = create("timm:test_vit", size=64)
    assert vit.config["kwargs"] == {"img_size": 64}
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pt")
    loaded = create("timm:test_vit", str(tmp_path / "vit.pt"), size=64)  # position embeddings are resampled
    assert loaded.module.pos_embed.shape == vit.module.pos_embed.shape
    with pytest.raises(InputError) as error:
        create("timm:test_vit", size=24)
    assert (error.value.code, str(error.value.where)) == (
        "image-size-impossible",
        "timm:test_vit, --student-size",
    )
    assert str(error.value.found).startswith("24 ")


# --- errors


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B-23", None, "open_clip has no such model: ViT-B-23. Next: did you mean ViT-B-32"),
        ("timm:test_resnett", None, "timm has no such model: test_resnett. Next: did you mean test_resnet"),
        ("ViT-B-32", "openia", "ViT-B-32 has no such weights: openia. Next: did you mean openai?"),
        (
            "timm:test_vit",
            "r161_in1k",
            "timm:test_vit has no such weights: r161_in1k. Next: did you mean r160_in1k",
        ),
        ("timm:test_vit.r161", None, "timm:test_vit has no such weights: r161. Next: "),
        ("timm:test_vit", "no/such.pt", "no such file of weights: "),
        (
            "local-dir:nowhere",
            None,
            "no open_clip model in this folder: nowhere: expected open_clip_config.json",
        ),
    ],
)
def test_misspelt_names(name: str, pretrained: str | None, message: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        create(name, pretrained)
    assert str(error.value).startswith(message)


def test_weights_that_do_not_fit(tiny_clip, tmp_path) -> None:
    state = safetensors.torch.load_file(tiny_clip / "open_clip_model.safetensors")
    path = str(tmp_path / "w.safetensors")
    what = "weights do not fit the image tower of local-dir:tiny: w.safetensors: "
    name = f"local-dir:{tiny_clip}"

    def message(changed: dict[str, torch.Tensor]) -> str:
        safetensors.torch.save_file(changed, path)
        with pytest.raises(InputError) as error:
            create(name, path)
        return str(error.value)

    missing = {n: v for n, v in state.items() if n != "visual.proj"}
    assert message(missing) == f"{what}expected proj (32, 5), found none (1 missing)"
    more = state | {"visual.extra": torch.zeros(1)}
    assert message(more) == f"{what}expected no other weights, found extra (1,) (1 unknown)"
    wider = state | {"visual.proj": torch.zeros(32, 9)}
    assert message(wider) == f"{what}expected proj (32, 5), found proj (32, 9) (1 of another shape)"


def test_a_weights_file_never_runs_code(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Evil()}))
    torch.save({"state_dict": Evil()}, "evil2.pt")
    for path in ("evil.pt", "evil2.pt"):
        with pytest.raises(InputError) as error:
            create("timm:test_resnet", path)
        assert (error.value.code, str(error.value.where)) == ("weights-unreadable", str(path))
        assert error.value.found is not None
    assert not (tmp_path / "ran").exists()
    torch.save([1, 2], "list.pt")
    with pytest.raises(InputError) as error:
        create("timm:test_resnet", "list.pt")
    assert (error.value.code, str(error.value.where), str(error.value.expected)) == (
        "weights-malformed",
        "list.pt",
        "tensors by name",
    )
    assert str(error.value.found).startswith("list")


# --- the module


def test_embeddings_are_normalised_features_through_the_projector() -> None:
    backbone = create("timm:test_resnet", size=32)
    for normalized in (True, False):
        student = Student(backbone.module, backbone.preprocess, head(backbone.width, normalized=normalized)).eval()
        mean = torch.tensor(backbone.preprocess.mean).view(1, 3, 1, 1)
        std = torch.tensor(backbone.preprocess.std).view(1, 3, 1, 1)
        features = backbone.module((pixels(32).float() / 255 - mean) / std)
        expected = features @ student.projector.weight.T + student.projector.bias
        if normalized:
            expected = expected / expected.norm(dim=1, keepdim=True)
        assert torch.allclose(student(pixels(32)), expected, atol=1e-6)
        vec = vectors(6, normalized=normalized)
        logits = ClassHead(vec)(student(pixels(32))).detach()
        assert np.allclose(logits.numpy(), vec.logits(student(pixels(32)).detach().numpy()), atol=1e-5)


def test_autocast_reaches_the_backbone_only() -> None:
    backbone = create("timm:test_resnet", size=32)
    student = Student(backbone.module, backbone.preprocess, head(backbone.width, projector="mlp")).eval()
    seen = {}
    for name, module in (("backbone", backbone.module.conv1), ("projector", student.projector[0])):
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        embedding = student(pixels(32))
        logits = ClassHead(vectors(6))(embedding)
    assert seen == {"backbone": torch.bfloat16, "projector": torch.float32}
    assert embedding.dtype == logits.dtype == torch.float32


def test_the_mlp_projector_is_promptkds_convolutions() -> None:
    torch.manual_seed(0)
    student_head = head(10, projector="mlp")
    backbone = create("timm:test_resnet", size=32)
    projector = Student(backbone.module, backbone.preprocess, student_head).projector.train()
    convolutions = nn.Sequential(nn.Conv2d(10, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1))
    state = {n: v[..., None, None] if n in ("0.weight", "3.weight") else v for n, v in projector.state_dict().items()}
    convolutions.load_state_dict(state)
    features = torch.randn(8, 10)
    expected = convolutions(features[..., None, None])[..., 0, 0]
    assert torch.allclose(projector(features), expected, atol=1e-6)


def test_a_frozen_backbone_stays_in_eval_mode() -> None:
    backbone = create("timm:test_resnet", size=32)
    student = Student(backbone.module, backbone.preprocess, head(backbone.width, projector="mlp"))
    student.freeze_backbone()
    student.train()
    assert not any(module.training for module in student.backbone.modules())
    assert student.projector.training
    assert set(student.trained()) == {
        "projector.0.weight",
        "projector.0.bias",
        "projector.1.weight",
        "projector.1.bias",
        "projector.3.weight",
        "projector.3.bias",
    }


def test_a_projector_is_needed_between_different_widths() -> None:
    backbone = create("timm:test_resnet", size=32)
    with pytest.raises(InputError) as error:
        Student(backbone.module, backbone.preprocess, head(backbone.width, projector="none"))
    assert error.value.fields == {
        "code": "projector-needed",
        "where": "--projector none",
        "expected": "6 channels",
        "found": str(backbone.width),
        "hint": "--projector linear",
    }


# --- the bundle


def config_of(backbone: Backbone, student: Student, vec: ClassVectors) -> BundleConfig:
    return BundleConfig(
        student=backbone.config,
        head=student.head.to_json(),
        preprocess=backbone.preprocess.to_json(),
        class_names=vec.names,
        logit_scale=vec.logit_scale,
        normalized=vec.normalized,
        origin={},
    )


@pytest.mark.parametrize("kind", ["prompted", "timm", "timm vit of another size"])
def test_a_bundle_gives_the_same_logits_without_network_or_original_weights(
    kind: str, tiny_clip, tmp_path, no_network
) -> None:
    source = shutil.copytree(tiny_clip, tmp_path / "source")
    normalized = kind == "prompted"
    if kind == "prompted":
        backbone = create(f"local-dir:{source}")
        student_head = head(5, projector="mlp", prompt_length=2, prompt_depth=3)
    elif kind == "timm":
        backbone = create("timm:test_efficientnet", size=32)
        student_head = head(backbone.width, normalized=False)
    else:
        backbone = create("timm:test_vit", size=64)
        student_head = head(backbone.width, normalized=False)
    student = Student(backbone.module, backbone.preprocess, student_head)
    student.train()
    student(pixels(backbone.preprocess.size))  # moves batch norm's statistics
    student.eval()
    vec = vectors(6, normalized=normalized)
    write_bundle(Location.of(tmp_path / "b"), student, vec, config_of(backbone, student, vec))
    shutil.rmtree(source)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "class_vectors.safetensors",
        "config.json",
        "model.safetensors",
    ]
    loaded = load_student(str(tmp_path / "b"))
    images = pixels(backbone.preprocess.size)
    with torch.no_grad():
        assert torch.equal(loaded.student(images), student(images))
    assert not loaded.student.training
    assert loaded.vectors.digest == vec.digest
    assert loaded.preprocess == backbone.preprocess
    names = set(safetensors.torch.load_file(tmp_path / "b" / "model.safetensors"))
    assert names == set(student.state_dict())


def test_what_is_no_bundle(tiny_clip, tmp_path, monkeypatch, revouch_bundle) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as missing:
        load_student("b")
    assert missing.value.fields == {
        "code": "bundle-missing",
        "where": "b",
        "expected": "a student bundle",
        "found": "nothing",
        "hint": "teachonce distill SHARDS STORE --student … --out b",
    }
    (tmp_path / "b" / "run").mkdir(parents=True)
    with pytest.raises(IncompleteError) as error:
        load_student("b")
    assert (error.value.code, str(error.value.where)) == ("student-unfinished", "b")
    assert str(error.value.hint).startswith("run the same")
    backbone = create("timm:test_resnet", size=32)
    student, vec = Student(backbone.module, backbone.preprocess, head(backbone.width)), vectors(6)
    write_bundle(Location.of("b"), student, vec, config_of(backbone, student, vec))
    weights = tmp_path / "b" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(DamagedError) as unfit:
        load_student("b")
    assert (unfit.value.code, unfit.value.what, str(unfit.value.where)) == (
        "config-file-changed",
        "model.safetensors is not the file that its config.json was written with",
        "b",
    )
    assert str(unfit.value.expected).startswith("sha256 ")
    state = safetensors.torch.load(whole)
    del state["projector.bias"]
    weights.write_bytes(safetensors.torch.save(state))
    revouch_bundle(tmp_path / "b")
    with pytest.raises(DamagedError) as unfit:
        load_student("b")
    assert str(unfit.value) == (
        "weights do not fit the bundle's model: b/model.safetensors: expected projector.bias (6,), "
        "found none (1 missing)"
    )
    config = tmp_path / "b" / "config.json"
    config.write_text(config.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(MismatchError) as mismatch:
        load_student("b")
    assert (mismatch.value.code, mismatch.value.what, str(mismatch.value.hint)) == (
        "format-version-unknown",
        "a student bundle of a later version of teachonce",
        "update teachonce here",
    )
