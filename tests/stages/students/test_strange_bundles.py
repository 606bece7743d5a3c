"""Bundles from strangers: what they say opens no file, fetches nothing, and makes no room for more than they hold."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from teachonce.pipeline.storage import Location
from teachonce.stages.models.tokenizer import load_tokenizer
from teachonce.stages.models.vision_config import VisionConfig, check_vision_config
from teachonce.stages.students import rebuild
from teachonce.stages.students.bundle import load_student, write_bundle
from teachonce.stages.students.head import Head
from teachonce.stages.students.registry import family_of
from teachonce.stages.students.student import Student
from teachonce.storage_schemas.bundle import BundleConfig
from teachonce.storage_schemas.class_vectors import ClassVectors
from teachonce.storage_schemas.errors import DamagedError, InputError

_OPENED: list[str] = []
sys.addaudithook(lambda event, arguments: _OPENED.append(str(arguments[0])) if event == "open" else None)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def students(tiny_clip):
    """A student, its class vectors and its configuration, by family."""
    made = {}
    for family, name in (
        ("open_clip", f"local-dir:{tiny_clip}"),
        ("timm", "timm:test_resnet"),
        ("vit", "timm:test_vit"),
    ):
        backbone = family_of(name).create(name, None if family == "open_clip" else "random", seed=0, size=None)
        head = Head(width=backbone.width, embed_dim=6, projector="linear", normalized=True)
        vectors = ClassVectors(
            names=("x", "y"),
            vectors_CD=np.eye(2, 6, dtype=np.float32),
            bias_C=None,
            logit_scale=7.0,
            normalized=True,
        )
        student = Student(backbone.module, backbone.preprocess, head)
        config = BundleConfig(
            student=backbone.config,
            head=head.to_json(),
            preprocess=backbone.preprocess.to_json(),
            class_names=("x", "y"),
            logit_scale=7.0,
            normalized=True,
            origin={},
        )
        made[family] = (student, vectors, config)
    return made


@pytest.fixture
def load(students, tmp_path):
    """`load(family, student={…}, preprocess={…}, head={…})`: a bundle that says this instead; None leaves a field out."""

    def changed(fields, changes):
        merged = {**fields, **changes}
        return {key: value for key, value in merged.items() if value is not None}

    def make(family, *, vectors_CD=None, **changes):
        student, vectors, config = students[family]
        fields = {name: changed(getattr(config, name), values) for name, values in changes.items()}
        folder = tmp_path / "bundle"
        own = vectors if vectors_CD is None else replace(vectors, vectors_CD=vectors_CD)
        write_bundle(Location.of(folder), student, own, replace(config, **fields))
        return load_student(str(folder))

    return make


def refused(load, *arguments, **changes) -> str:
    with pytest.raises(DamagedError) as error:
        load(*arguments, **changes)
    text = str(error.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timm_model_name", "hf-hub:someone/model"),
        ("timm_model_name", "local-dir:SECRET"),
        ("timm_model_name", "SECRET"),
        ("timm_model_name", "no_such_model"),
        ("timm_model_pretrained", True),
        ("checkpoint_path", "SECRET"),
        ("hf_model_name", "someone/model"),
        ("layers", 0),
        ("layers", -1),
        ("layers", 10**12),
        ("layers", 1000),
        ("layers", "12"),
        ("layers", True),
        ("layers", [1, 1, 1]),
        ("layers", [1, 1, 1, 1000]),
        ("width", 0),
        ("width", -32),
        ("width", 10**12),
        ("width", 1 << 16),
        ("width", 32.5),
        ("head_width", 0),
        ("head_width", 64),
        ("mlp_ratio", 0),
        ("mlp_ratio", 64.0),
        ("mlp_ratio", "4"),
        ("patch_size", 0),
        ("patch_size", 1),
        ("patch_size", [8]),
        ("image_size", 0),
        ("image_size", 4096),
        ("image_size", 10**9),
        ("image_size", [32, 32, 32]),
        ("attentional_pool", "SECRET"),
        ("pos_embed_type", "SECRET"),
        ("norm_kwargs", {"device": "cuda"}),
        ("norm_kwargs", {"eps": "1"}),
        ("act_kwargs", {"approximate": "SECRET"}),
        ("block_type", "SECRET"),
        ("timm_proj", "SECRET"),
    ],
)
def test_an_open_clip_tower_that_a_bundle_may_not_ask_for(load, tmp_path, monkeypatch, field, value):
    secret = tmp_path / "secret"
    secret.write_bytes(b"private")
    monkeypatch.setattr(rebuild, "unfilled", lambda: pytest.fail("room was made"))
    value = value.replace("SECRET", str(secret)) if isinstance(value, str) else value
    _OPENED.clear()
    refused(load, "open_clip", student={"vision_cfg": {**VISION, field: value}})
    assert str(secret) not in _OPENED


@pytest.mark.parametrize(
    "changes",
    [
        {"embed_dim": 0},
        {"embed_dim": 10**12},
        {"embed_dim": 1 << 16},
        {"embed_dim": "5"},
        {"quick_gelu": "yes"},
        {"trunk_size": -1},
        {"vision_cfg": []},
        {"vision_cfg": None},
        {"name": 5},
        {"weights": "x"},
        {"family": "other"},
        {"family": ["open_clip"]},
        {"family": None},
    ],
)
def test_an_open_clip_student_that_is_described_wrongly(load, monkeypatch, changes):
    monkeypatch.setattr(rebuild, "unfilled", lambda: pytest.fail("room was made"))
    refused(load, "open_clip", student=changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "hf-hub:someone/model"},
        {"name": "hf_hub:someone/model"},
        {"name": "local-dir:SECRET"},
        {"name": "SECRET"},
        {"name": "no_such_model"},
        {"name": "test_resnet.no_such_tag"},
        {"name": "vit_giant_patch14_224"},
        {"name": ""},
        {"name": 7},
        {"kwargs": {"checkpoint_path": "SECRET"}},
        {"kwargs": {"pretrained": True}},
        {"kwargs": {"pretrained_cfg": {"file": "SECRET"}}},
        {"kwargs": {"pretrained_cfg_overlay": {"file": "SECRET"}, "pretrained": True}},
        {"kwargs": {"cache_dir": "SECRET"}},
        {"kwargs": {"features_only": True}},
        {"kwargs": {"num_classes": 10}},
        {"kwargs": {"img_size": 0}},
        {"kwargs": {"img_size": 10**9}},
        {"kwargs": {"img_size": "160"}},
        {"kwargs": []},
        {"kwargs": None},
        {"pretrained": True},
    ],
)
def test_a_timm_model_that_a_bundle_may_not_ask_for(load, tmp_path, monkeypatch, changes):
    secret = tmp_path / "secret"
    secret.write_bytes(b"private")
    monkeypatch.setattr(rebuild, "unfilled", lambda: pytest.fail("room was made"))
    _OPENED.clear()
    refused(load, "timm", student=json.loads(json.dumps(changes).replace("SECRET", str(secret))))
    assert str(secret) not in _OPENED


def test_parts_that_do_not_fit_together_are_one_line(load):
    size = "the bundle's model cannot be built"
    assert size in refused(load, "open_clip", preprocess={"size": 31})
    assert "at most 4096 pixels" in refused(load, "timm", preprocess={"size": 100_000})
    assert "weights do not fit the bundle's model" in refused(load, "vit", student={"kwargs": {"img_size": 64}})
    assert "weights do not fit the bundle's model" in refused(load, "timm", head={"width": 10**9})
    assert "weights do not fit the bundle's model" in refused(
        load, "open_clip", head={"prompt_length": 10**6, "prompt_depth": 2}
    )
    assert "impossible prompts" in refused(load, "open_clip", head={"prompt_length": 4, "prompt_depth": 4})
    assert "cannot take visual prompts" in refused(load, "timm", head={"prompt_length": 4, "prompt_depth": 1})
    assert refused(load, "timm", vectors_CD=np.eye(2, 5, dtype=np.float32)).startswith(
        "the bundle's class vectors are not for its student: "
    )


@pytest.mark.parametrize("family", ["open_clip", "timm", "vit"])
def test_what_was_written_is_loaded_as_it_was(load, students, family):
    student = students[family][0].eval()
    loaded = load(family)
    images = torch.randint(0, 256, (2, 3, *[loaded.preprocess.size] * 2), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded.student(images), student(images))


def test_every_field_of_open_clip_is_known_and_every_model_of_it_allowed():
    fields = set(open_clip.model.CLIPVisionCfg.__dataclass_fields__)
    assert fields == set(VisionConfig.__struct_fields__)
    for name in open_clip.list_models():
        vision = open_clip.get_model_config(name)["vision_cfg"]
        assert check_vision_config(vision, where=name, hint="").width == vision.get("width", 768)


def test_a_models_folder_is_read_by_the_same_rules(tiny_clip, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder)
    file = folder / "open_clip_config.json"
    fields = json.loads(file.read_bytes())
    vision, text = fields["model_cfg"]["vision_cfg"], fields["model_cfg"]["text_cfg"]

    def refusal(**changes):
        fields["model_cfg"]["vision_cfg"] = {**vision, **changes}
        file.write_text(json.dumps(fields))
        with pytest.raises(InputError) as error:
            family_of(f"local-dir:{folder}").create(f"local-dir:{folder}", None, seed=0, size=None)
        return str(error.value)

    assert "found hf-hub" not in refusal(checkpoint_path="/x")
    assert refusal(timm_model_name="hf-hub:someone/model").startswith(
        f"not a configuration of an image tower: {folder}/open_clip_config.json: found "
    )
    assert "unknown field `checkpoint_path`" in refusal(checkpoint_path="/x")
    fields["model_cfg"]["vision_cfg"] = vision
    secret = Path(folder / "words.gz")
    secret.write_bytes(b"")
    fields["model_cfg"]["text_cfg"] = {**text, "tokenizer_kwargs": {"bpe_path": str(secret)}}
    file.write_text(json.dumps(fields))
    _OPENED.clear()
    with pytest.raises(InputError) as refused:
        load_tokenizer(f"local-dir:{folder}")
    assert refused.value.code == "tokenizer-setting-unknown"
    assert str(secret) not in _OPENED
