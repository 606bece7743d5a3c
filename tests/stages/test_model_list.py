"""`teachonce models`: what is listed can be named, and its sizes are those of the plain libraries."""

from __future__ import annotations

import json

import open_clip
import pytest
import timm
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.stages.model_list import list_models, models_text
from teachonce.stages.models.catalogue import open_clip_models, timm_models
from teachonce.storage_schemas.errors import InputError


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["models", *words])
    return result.exit_code, result.stdout, result.stderr


def test_all_models_of_both_libraries_are_there():
    named = [model.name for model in open_clip_models()]
    assert named == open_clip.list_models()
    assert {tag for model in open_clip_models() for tag in model.weights} == {t for _, t in open_clip.list_pretrained()}
    architectures = {model.name for model in timm_models()}
    pretrained = {f"timm:{name.partition('.')[0]}" for name in timm.list_pretrained()}
    assert pretrained - architectures == set()


def test_numbers_are_those_of_the_built_models():
    plain = open_clip.create_model("ViT-B-32", pretrained=None)
    found = {model.named.name: model for model in list_models("vit b 32", role=None)}
    clip = found["ViT-B-32"]
    assert clip.measures.parameters == sum(p.numel() for p in plain.parameters())
    assert (clip.measures.width, clip.named.size, clip.named.weights["openai"]) == (
        512,
        224,
        "hub timm/vit_base_patch32_clip_224.openai",
    )
    assert found["xlm-roberta-base-ViT-B-32"].measures is None
    assert found["xlm-roberta-base-ViT-B-32"].named.needs == "transformers"
    model = timm.create_model("mobilenetv3_small_050")
    (small,) = list_models("mobilenetv3_small_050", role="teacher")[:1]
    assert small.measures.parameters == sum(p.numel() for p in model.parameters())
    assert small.measures.width == model.get_classifier().in_features


def test_the_command():
    code, stdout, stderr = run("ViT-L/14", "--json")
    assert (code, stderr) == (0, "")
    names = [model["name"] for model in json.loads(stdout)]
    assert "ViT-L-14" in names
    assert "ViT-B-32" not in names
    code, stdout, _ = run("resnet18")
    assert code == 0
    assert stdout.splitlines()[0].split() == ["model", "pixels", "width", "parameters", "weights", "needs"]
    assert any(line.startswith("timm:resnet18 ") and "11.7 M" in line for line in stdout.splitlines())
    code, stdout, stderr = run("--teacher", "convnxt_tiny")
    assert (code, stdout) == (1, "")
    assert stderr.startswith(
        "Error: no model has such a name: convnxt_tiny [model-unknown]. Next: did you mean convnext_tiny, "
    )


def test_what_cannot_be_a_teacher_is_not_offered_as_one():
    students = {model.named.name for model in list_models("dinov2", role="student")}
    assert any("vit_small_patch14_dinov2" in name for name in students)
    with pytest.raises(InputError) as error:
        list_models("dinov2", role="teacher")
    assert error.value.code == "model-unknown"
    assert str(error.value.where).startswith("dinov2")


def test_long_lists_say_how_to_see_more():
    text = models_text(list_models(None, role=None))
    assert text.splitlines()[0].split() == ["model", "pixels", "weights", "needs"]
    assert text.endswith("models. Add TEXT to see width and parameters of up to 100.")
