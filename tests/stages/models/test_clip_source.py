"""What open_clip's names and `pretrained` mean here, for teachers and students alike."""

from __future__ import annotations

import json
import socket

import open_clip
import pytest
from teachonce.stages.models.clip import build_clip
from teachonce.stages.models.clip_source import resolve_clip
from teachonce.stages.models.timm_models import resolve_timm
from teachonce.storage_schemas.errors import InputError


@pytest.fixture
def downloads(monkeypatch) -> list[str]:
    """Nothing is downloaded; what would be is noted."""
    asked: list[str] = []

    def download(tag, **_options):
        asked.append(tag["hf_hub"] if tag.get("hf_hub") else tag["url"])
        return "/downloaded/file.safetensors"

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", download)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: [])
    return asked


def test_every_tag_gets_the_activation_that_its_weights_were_trained_with(downloads) -> None:
    # open_clip's create_model builds what the model's name says, and only warns where the tag says otherwise.
    tags = open_clip.list_pretrained()
    assert len(tags) > 150
    different = 0
    for model, tag in tags:
        config = open_clip.get_model_config(model)
        says = open_clip.get_pretrained_cfg(model, tag)
        named, trained = bool(config.get("quick_gelu")), bool(says.get("quick_gelu"))
        different += named != trained
        for spelled in (model, model.replace("-", "/", 1)):
            source = resolve_clip(spelled, tag, role="teacher")
            assert bool(source.model_cfg.get("quick_gelu")) == (named or trained), (model, tag)
            assert source.name == model
            assert source.weights == tag
            assert source.preprocess_cfg["resize_mode"] == says.get("resize_mode", "shortest")
            assert tuple(source.preprocess_cfg["mean"]) == tuple(says["mean"])
    assert different > 20
    assert len(downloads) == 2 * len(tags)


def test_openais_spelling_is_the_same_model(downloads) -> None:
    source = resolve_clip("ViT-L/14", "openai", role="teacher")
    assert (source.name, source.model_cfg["quick_gelu"]) == ("ViT-L-14", True)
    assert downloads == ["timm/vit_large_patch14_clip_224.openai/"]


def test_weights_beside_a_folder_or_a_hub_name_are_those_that_were_named(tiny_clip, tmp_path) -> None:
    own = resolve_clip(f"local-dir:{tiny_clip}", None, role="teacher")
    assert (own.weights_path, own.weights) == (
        str(tiny_clip / "open_clip_model.safetensors"),
        "those of local-dir:tiny",
    )
    (tmp_path / "mine.pt").write_bytes(b"anything: it is not opened here")
    other = resolve_clip(f"local-dir:{tiny_clip}", str(tmp_path / "mine.pt"), role="teacher")
    assert (other.weights_path, other.weights) == (str(tmp_path / "mine.pt"), "mine.pt")
    with pytest.raises(InputError) as error:
        resolve_clip(f"local-dir:{tiny_clip}", str(tmp_path / "no.pt"), role="teacher")
    assert error.value.fields == {
        "code": "weights-missing",
        "where": f"--teacher-pretrained {tmp_path}/no.pt",
        "hint": "local-dir:tiny brings its own weights",
    }


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_folder_without_its_weights_is_refused(tiny_clip, tmp_path, role) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((tiny_clip / "open_clip_config.json").read_bytes())
    with pytest.raises(InputError) as error:
        resolve_clip(f"local-dir:{tmp_path}", None, role=role)
    assert error.value.fields == {
        "code": "weights-missing",
        "where": f"local-dir:{tmp_path}",
        "hint": f"put them there, or add --{role}-pretrained FILE, or --{role}-pretrained random to try things out",
    }


def test_a_folder_with_several_weights_none_of_which_has_open_clips_name_is_refused(tiny_clip, tmp_path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((tiny_clip / "open_clip_config.json").read_bytes())
    for name in ("epoch_1.safetensors", "epoch_2.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError) as error:
        resolve_clip(f"local-dir:{tmp_path}", None, role="teacher")
    assert error.value.fields == {
        "code": "weights-several",
        "where": f"local-dir:{tmp_path}",
        "expected": "one, or open_clip_model.safetensors",
        "found": "epoch_1.safetensors, epoch_2.safetensors",
        "hint": "add --teacher-pretrained FILE",
    }
    (tmp_path / "epoch_2.safetensors").rename(tmp_path / "open_clip_model.safetensors")
    assert resolve_clip(f"local-dir:{tmp_path}", None, role="teacher").weights_path == str(
        tmp_path / "open_clip_model.safetensors"
    )


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-L14", "openai", "open_clip has no such model: ViT-L14. Next: did you mean ViT-L-14, "),
        (
            "resnet50.a1_in1k",
            None,
            "open_clip has no such model: resnet50.a1_in1k. Next: did you mean timm:resnet50.a1_in1k?",
        ),
        ("vit-b-16", "openai", "open_clip has no such model: vit-b-16. Next: did you mean ViT-B-16"),
        ("ViT-B-32", "dfn5b", "ViT-B-32 has no such weights: dfn5b. Next: one of openai, "),
        ("ViT-B-32", "opeanai", "ViT-B-32 has no such weights: opeanai. Next: did you mean openai?"),
        (
            "ViT-B-32",
            "openai.pt",
            "no such file of weights: --teacher-pretrained openai.pt. Next: one of openai, ",
        ),
        (
            "ViT-B-32",
            None,
            "a teacher needs weights: ViT-B-32. Next: add --teacher-pretrained: one of openai, ",
        ),
        (
            "EVA01-g-14-plus-x",
            None,
            "open_clip has no such model: EVA01-g-14-plus-x. Next: did you mean EVA01-g-14-plus",
        ),
    ],
)
def test_names_that_mean_nothing(name, pretrained, message) -> None:
    with pytest.raises(InputError) as error:
        resolve_clip(name, pretrained, role="teacher")
    assert str(error.value).startswith(message)


def test_an_open_clip_name_under_timms_prefix() -> None:
    with pytest.raises(InputError) as error:
        resolve_timm("timm:ViT-B-32", "openai", role="student")
    assert error.value.fields == {
        "code": "model-unknown",
        "where": "ViT-B-32",
        "hint": "did you mean ViT-B-32, without timm:?",
    }


@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b'{"model_cfg": {}}', b'{"model_cfg": {"embed_dim": 4}}', b"\xff", b"[" * 100_000],
)
def test_a_configuration_that_is_none_is_one_line(tmp_path, data) -> None:
    (tmp_path / "open_clip_config.json").write_bytes(data)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError) as error:
        resolve_clip(f"local-dir:{tmp_path}", None, role="teacher")
    assert error.value.code == "model-config-malformed"
    assert str(error.value.where).endswith("open_clip_config.json")
    assert str(error.value.expected).startswith("model_cfg")


@pytest.mark.parametrize("name", ["hf-hub:org/model", "ViT-B-32"])
def test_no_network_is_one_line_at_once(name, monkeypatch, capfd, tmp_path) -> None:
    calls = []

    def no_name(*_args, **_kwargs):
        calls.append(1)
        raise socket.gaierror("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        resolve_clip(name, None if ":" in name else "openai", role="teacher")
    assert str(error.value).startswith(
        f"cannot download from the hub: {name}{'' if ':' in name else ', openai'}: found no network: https://"
    )
    assert len(calls) == 1, "the hub's client tries no more"
    assert capfd.readouterr() == ("", "")


def test_what_is_in_the_hubs_cache_needs_no_network(tiny_clip, monkeypatch, tmp_path) -> None:
    snapshot = tmp_path / "models--org--model" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in tiny_clip.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    refs = tmp_path / "models--org--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: (_ for _ in ()).throw(socket.gaierror("none")))
    source = resolve_clip("hf-hub:org/model", None, role="student")
    assert source.model_cfg == json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"]
    assert str(source.weights_path) == str(snapshot / "open_clip_model.safetensors")


def test_a_text_tower_that_brings_code_is_refused_without_a_question(tmp_path, monkeypatch):
    """transformers would ask at the terminal whether to run it."""
    pytest.importorskip("transformers")
    ran, folder, text = tmp_path / "ran", tmp_path / "model", tmp_path / "text"
    for place in (folder, text):
        place.mkdir()
    (text / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}))
    (text / "code.py").write_text(f"open({str(ran)!r}, 'w')\nfrom transformers import PretrainedConfig as Config\n")
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {"hf_model_name": str(text)}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    with pytest.raises(InputError) as error:
        build_clip(resolve_clip(f"local-dir:{folder}", "random", role="teacher"))
    assert (error.value.code, error.value.what) == ("model-unbuildable", "cannot build this teacher")
    assert "custom code" in str(error.value.found)
    assert not ran.exists()
