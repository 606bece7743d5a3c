"""Image models of transformers as teachers: their targets and class vectors are those of plain transformers."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from teachonce.stages.models.transformers_models import of_processor
from teachonce.stages.teachers import Teacher, TeacherConfig, load_teacher
from teachonce.storage_schemas.errors import InputError, MissingDependency
from torch.nn import functional as F

transformers = pytest.importorskip("transformers")

SIZE = 28
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE_KINDS: dict[str, Any] = {
    "dinov2": lambda t: t.Dinov2Model(t.Dinov2Config(**SMALL, image_size=SIZE, patch_size=14)),
    "registers": lambda t: t.Dinov2WithRegistersModel(
        t.Dinov2WithRegistersConfig(**SMALL, image_size=SIZE, patch_size=14, num_register_tokens=4)
    ),
    "dinov3": lambda t: t.DINOv3ViTModel(
        t.DINOv3ViTConfig(**SMALL, image_size=SIZE, patch_size=14, num_register_tokens=4)
    ),
    "vit": lambda t: t.ViTModel(t.ViTConfig(**SMALL, image_size=SIZE, patch_size=7)),
    "convnext": lambda t: t.ConvNextModel(
        t.ConvNextConfig(hidden_sizes=[4, 6, 8], depths=[1, 1, 1], num_stages=3, patch_size=2)
    ),
}


def processor(name: str, **changes: Any) -> Any:
    found = {
        "do_resize": True,
        "size": {"shortest_edge": 32},
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.25, 0.3],
        "resample": 3,
    }
    return getattr(transformers, name)(**{**found, **changes})


def write(folder: Path, model: Any, own_processor: Any) -> str:
    model.save_pretrained(folder)
    own_processor.save_pretrained(folder)
    return f"transformers:{folder}"


def load(name: str, **options: Any) -> Teacher:
    load_teacher.cache_clear()
    return load_teacher(TeacherConfig.of(name, **options))


@pytest.fixture(scope="module", params=IMAGE_KINDS)
def kind(request, tmp_path_factory) -> tuple[Any, str]:
    torch.manual_seed(0)
    model = IMAGE_KINDS[request.param](transformers).eval()
    return model, write(tmp_path_factory.mktemp(request.param) / "tiny", model, processor("BitImageProcessor"))


def images(count: int = 3, size: int = SIZE) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
    return (pixels / 255 - mean) / std


def test_targets_are_those_of_plain_transformers(kind) -> None:
    model, name = kind
    teacher = load(name)
    offers = {offer.name: offer for offer in teacher.offers()}
    with torch.no_grad():
        found = teacher.outputs(images(), tuple(offers))
        plain = model(normalized(images()), output_hidden_states=True)
    assert {n: tuple(value.shape[1:]) for n, value in found.items()} == {n: o.shape for n, o in offers.items()}
    torch.testing.assert_close(found["embedding"], plain.pooler_output.flatten(1), rtol=1e-5, atol=1e-5)
    if model.config.model_type == "convnext":
        torch.testing.assert_close(found["tokens"], plain.last_hidden_state.flatten(2).transpose(1, 2))
        maps = plain.hidden_states
    else:
        prefix = 1 + getattr(model.config, "num_register_tokens", 0)
        side = SIZE // model.config.patch_size
        torch.testing.assert_close(found["tokens"], plain.last_hidden_state[:, prefix:], rtol=1e-5, atol=1e-5)
        maps = [s[:, prefix:].transpose(1, 2).reshape(3, -1, side, side) for s in plain.hidden_states]
    for index, values in enumerate(maps):
        stage = "features.stem" if index == 0 else f"features.stage{index}"
        torch.testing.assert_close(found[stage], values, rtol=1e-5, atol=1e-5)
    assert teacher.spec.embed_dim == found["embedding"].shape[1]
    assert (teacher.spec.family, teacher.spec.model, teacher.spec.normalized) == ("transformers", "tiny", False)


def test_maps_are_those_of_transformers_own_backbones(tmp_path) -> None:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        **SMALL, image_size=SIZE, patch_size=14, apply_layernorm=False, out_indices=[0, 1, 2]
    )
    name = write(tmp_path / "tiny", transformers.Dinov2Model(config), processor("BitImageProcessor"))
    backbone = transformers.Dinov2Backbone.from_pretrained(str(tmp_path / "tiny"), out_indices=[0, 1, 2]).eval()
    names = [f"features.{stage}" for stage in backbone.stage_names]
    with torch.no_grad():
        found = load(name).outputs(images(), names)
        maps = backbone(normalized(images())).feature_maps
    for stage, values in zip(names, maps, strict=True):
        torch.testing.assert_close(found[stage], values, rtol=1e-5, atol=1e-5)


def test_the_same_in_every_load_and_another_with_other_weights(kind, tmp_path, capfd) -> None:
    model, name = kind
    capfd.readouterr()
    first, again = load(name).spec, load(name).spec
    assert capfd.readouterr() == ("", "")  # no bars of the library's
    assert first == again
    other = type(model)(model.config)
    spec = load(write(tmp_path / "tiny", other, processor("BitImageProcessor"))).spec
    assert spec.architecture == first.architecture
    assert spec.weights_digest != first.weights_digest


def test_another_size(tmp_path) -> None:
    model = IMAGE_KINDS["vit"](transformers).eval()
    name = write(tmp_path / "tiny", model, processor("BitImageProcessor"))
    teacher = load(name, size=35)
    with torch.no_grad():
        found = teacher.outputs(images(size=35), ("tokens", "embedding"))
        plain = model(normalized(images(size=35)), interpolate_pos_encoding=True)
    assert found["tokens"].shape == (3, 25, 16)
    torch.testing.assert_close(found["tokens"], plain.last_hidden_state[:, 1:], rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="this model cannot take images of that size"):
        load(name, size=5)


# Image processors


def seen(preprocess: Any, image: Image.Image) -> np.ndarray:
    from teachonce.stages.views.render import render
    from teachonce.stages.views.spec import CENTER

    pixels = render(image, CENTER, preprocess.size, preprocess.center_view()).transpose(2, 0, 1) / 255
    mean, std = (np.asarray(values).reshape(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return (pixels - mean) / std


def differences(ours: np.ndarray, theirs: np.ndarray) -> Iterator[float]:
    """Mean differences, where the crop begins at the same pixel, or one before: where an odd number is left, it does so there."""
    for down in (0, 1):
        for right in (0, 1):
            yield float(np.abs(np.roll(ours, (down, right), (1, 2)) - theirs)[:, 1:, 1:].mean())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("BitImageProcessor", {}),
        ("BitImageProcessor", {"size": {"shortest_edge": SIZE}, "resample": 2}),
        ("ViTImageProcessor", {"size": {"height": SIZE, "width": SIZE}, "resample": 2, "do_center_crop": None}),
        ("SiglipImageProcessor", {"size": {"height": SIZE, "width": SIZE}, "do_center_crop": None}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": SIZE}, "crop_pct": 0.875}),
        ("BitImageProcessor", {"do_normalize": False}),
    ],
    ids=["crop", "bilinear", "squash", "siglip", "convnext", "plain"],
)
def test_images_are_prepared_as_the_processor_does_it(photographs, name: str, changes: dict[str, Any]) -> None:
    own = processor(name, **changes)
    preprocess = of_processor(own.to_dict(), None, where="x")
    for image in photographs:
        theirs = np.asarray(own(images=image, return_tensors="np")["pixel_values"][0])
        ours = seen(preprocess, image)
        assert ours.shape == theirs.shape
        assert min(differences(ours, theirs)) < 1e-3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"rescale_factor": 1.0},
            "unknown rescale_factor in the model's configuration: x: expected 1/255, found 1.0. Next: correct it, or use another model",
        ),
        (
            {"size": {"longest_edge": 32}, "crop_size": None},
            "unknown size in the model's configuration: x: expected height and width, or shortest_edge, found longest_edge. Next: correct "
            "it, or use another model",
        ),
        ({"size": {"height": 28, "width": 32}, "crop_size": None}, "only square inputs are supported: x: found 28x32"),
        ({"image_mean": [0.5]}, "only models with three input channels are supported: x: found 1"),
    ],
)
def test_processors_that_are_not_known(changes: dict[str, Any], text: str) -> None:
    found = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "do_center_crop": True}
    with pytest.raises(InputError) as error:
        of_processor({**found, "image_mean": [0, 0, 0], "image_std": [1, 1, 1], **changes}, None, where="x")
    assert str(error.value) == text


# Models with a text tower

TEXT = {**SMALL, "vocab_size": 40, "max_position_embeddings": 8}


def words(folder: Path) -> None:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["[PAD]", "[UNK]", "[EOS]", "a", "photo", "of", "red", "fox", "blue", "jay", "cat"]
    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", model_input_names=["input_ids"]
    ).save_pretrained(folder)


TEXT_KINDS: dict[str, Any] = {
    "siglip": lambda t: t.SiglipModel(
        t.SiglipConfig(
            text_config={**TEXT, "pad_token_id": 0}, vision_config={**SMALL, "image_size": SIZE, "patch_size": 14}
        )
    ),
    "siglip2": lambda t: t.Siglip2Model(
        t.Siglip2Config(
            text_config={**TEXT, "pad_token_id": 0}, vision_config={**SMALL, "num_patches": 4, "patch_size": 14}
        )
    ),
    "clip": lambda t: t.CLIPModel(
        t.CLIPConfig(
            text_config={**TEXT, "eos_token_id": 2, "pad_token_id": 0, "projection_dim": 12},
            vision_config={**SMALL, "image_size": SIZE, "patch_size": 14, "projection_dim": 12},
            projection_dim=12,
        )
    ),
}


@pytest.mark.parametrize("name", TEXT_KINDS)
def test_class_vectors_and_logits_are_those_of_plain_transformers(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    model = TEXT_KINDS[name](transformers).eval()
    mean = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    if name == "siglip2":
        own = transformers.Siglip2ImageProcessor(**mean, max_num_patches=4, patch_size=14)
    else:
        own = transformers.SiglipImageProcessor(**mean, size={"height": SIZE, "width": SIZE})
    folder = tmp_path / "tiny"
    words(folder)
    teacher = load(write(folder, model, own))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    classes = teacher.class_names(("red fox", "Blue_Jay", "cat"))
    vectors = teacher.class_vectors(classes, ("a photo of a {}", "{}"))
    features = []
    for template in ("a photo of a {}", "{}"):
        texts = [template.replace("{}", c.replace("_", " ")) for c in classes]
        ids = tokenizer(texts, padding="max_length", max_length=8, truncation=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            text = model.get_text_features(input_ids=ids)
        features.append(F.normalize(text if isinstance(text, torch.Tensor) else text.pooler_output, dim=-1))
    expected = F.normalize(torch.stack(features).mean(0), dim=-1)
    np.testing.assert_allclose(vectors.vectors_CD, expected.detach(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        embedding = teacher.embed(images())
        if name == "siglip2":
            patches = normalized(images()).reshape(3, 3, 2, 14, 2, 14).permute(0, 2, 4, 3, 5, 1).reshape(3, 4, -1)
            inputs = {
                "pixel_values": patches,
                "pixel_attention_mask": torch.ones(3, 4, dtype=torch.long),
                "spatial_shapes": torch.full((3, 2), 2),
            }
        else:
            inputs = {"pixel_values": normalized(images())}
        plain = model(input_ids=ids, **inputs)
    one = teacher.class_vectors(classes, ("{}",))
    torch.testing.assert_close(one.logits(embedding), plain.logits_per_image, rtol=1e-4, atol=1e-4)
    assert (vectors.bias_C is None) == (name == "clip")
    notes = teacher.name_notes(("red fox", "green fox", "other fox", "a a a a a a a a a"), ("{}",))
    assert len(notes) == 2  # one name is cut, two are the same to the tokenizer


# What is refused


def test_pickles_and_code_are_never_read(tmp_path) -> None:
    model = IMAGE_KINDS["dinov2"](transformers)
    folder = tmp_path / "tiny"
    name = write(folder, model, processor("BitImageProcessor"))
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError) as error:
        load(name)
    assert str(error.value).startswith(f"transformers cannot load this model: {folder}: found ")
    assert error.value.hint == (
        "the folder needs config.json, preprocessor_config.json and model.safetensors (no pickle, no code of its own)"
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="transformers cannot load this model"):
        load(name)
    assert not (tmp_path / "ran").exists()


def test_weights_that_lack_something(tmp_path) -> None:
    import safetensors.torch

    folder = tmp_path / "tiny"
    name = write(folder, IMAGE_KINDS["dinov2"](transformers), processor("BitImageProcessor"))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError) as error:
        load(name)
    assert str(error.value) == (
        f"weights do not fit the model that transformers builds: {name}: expected all of its weights, found 1 missing, 0 of another "
        "shape: layernorm.weight. Next: check that the configuration belongs to the weights"
    )


def test_a_pooler_that_was_never_trained_is_not_drawn(tmp_path) -> None:
    model = transformers.ViTModel(
        transformers.ViTConfig(**SMALL, image_size=SIZE, patch_size=7), add_pooling_layer=False
    )
    teacher = load(write(tmp_path / "tiny", model, processor("BitImageProcessor")))
    with torch.no_grad():
        expected = model.eval()(normalized(images())).last_hidden_state[:, 0]
        torch.testing.assert_close(teacher.embed(images()), expected, rtol=1e-5, atol=1e-5)


def test_other_weights_are_not_chosen(kind) -> None:
    with pytest.raises(InputError) as error:
        load(kind[1], pretrained="other.safetensors")
    assert str(error.value) == (
        "a model of transformers brings its own weights: --teacher-pretrained other.safetensors: expected none, or random, found "
        "other.safetensors. Next: leave it out"
    )


def test_without_transformers_it_is_named(kind, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependency) as error:
        load(kind[1])
    assert str(error.value) == "models of transformers need it. Next: pip install 'teachonce[transformers]'"


@pytest.mark.parametrize("module", ["models/transformers_models.py", "teachers/transformers.py"])
def test_it_is_imported_only_where_one_of_its_models_is_named(module: str) -> None:
    """It takes seconds to import."""
    tree = ast.parse((Path(__file__).parents[3] / "stages" / module).read_text())
    found = {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
    found |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level}
    assert "transformers" not in found
