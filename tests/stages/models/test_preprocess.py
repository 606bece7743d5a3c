"""Preprocessing read from timm's and open_clip's own configurations, against the transforms that they make of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from teachonce.stages.models.preprocess import Normalize, Preprocess
from teachonce.stages.views.render import render_views
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import InputError
from timm.data import create_transform, resolve_data_config

#: What a model's preprocessing was written as before there were other crop modes.
WRITTEN = {
    "size": 224,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bilinear",
    "crop_pct": 0.875,
}


def of_timm(name: str, **changes: Any) -> dict[str, Any]:
    """What timm resolves of a model's name, without building the model."""
    return resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()) | changes


def of_open_clip(model: str, tag: str, **changes: Any) -> dict[str, Any]:
    """The configuration that open_clip gives a model with these weights, without building it."""
    merged = merge_preprocess_dict(PreprocessCfg(), open_clip.get_pretrained_cfg(model, tag))
    return merge_preprocess_dict(
        merged, {"size": open_clip.get_model_config(model)["vision_cfg"]["image_size"]} | changes
    )


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return [coarse.resize(size, Image.Resampling.BICUBIC) for size in ((300, 200), (150, 433), (31, 31), (500, 20))]


def normalized(image: Image.Image, preprocess: Preprocess) -> torch.Tensor:
    """What a model gets: the test-time view, normalised."""
    spec = preprocess.center_view()
    pixels = render_views(image, spec.params("k", *image.size), preprocess.size, spec, range(1))
    return Normalize(preprocess)(torch.from_numpy(pixels))[0]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18.tv_in1k",
        "efficientnet_b0.ra_in1k",
        "vit_base_patch16_siglip_224.webli",
        "beit_base_patch16_224.in22k_ft_in22k",
        "convnext_small.in12k_ft_in1k_384",
        "eva02_tiny_patch14_336.mim_in22k_ft_in1k",
        "volo_d5_512.sail_in1k",
        "regnetz_b16.ra3_in1k",
    ],
)
@pytest.mark.parametrize("crop_mode", [None, "border"])
def test_a_timm_configuration_gives_timms_transform(name, crop_mode):
    cfg = of_timm(name)
    preprocess = Preprocess.of_timm(cfg, size=None, where=name).override(crop_mode=crop_mode)
    assert preprocess.crop_mode == (crop_mode or cfg["crop_mode"])
    transform = create_transform(**cfg | ({"crop_mode": crop_mode} if crop_mode else {}))
    for image in pictures():
        assert torch.equal(normalized(image, preprocess), transform(image)), image.size


def test_timm_has_the_crop_modes_that_are_tried():
    modes = {of_timm(name)["crop_mode"] for name in ("resnet18.tv_in1k", "convnext_small.in12k_ft_in1k_384")}
    assert modes == {"center", "squash"}
    assert of_timm("volo_d5_512.sail_in1k")["crop_pct"] > 1


@pytest.mark.parametrize("size", [None, 64])
def test_a_size_of_ones_own_replaces_the_models(size):
    cfg = of_timm("convnext_small.in12k_ft_in1k_384")
    preprocess = Preprocess.of_timm(cfg, size=size, where="here")
    assert preprocess.size == (size or 384)
    transform = create_transform(**cfg | {"input_size": (3, preprocess.size, preprocess.size)})
    for image in pictures():
        assert torch.equal(normalized(image, preprocess), transform(image))


@pytest.mark.parametrize(
    ("model", "tag"),
    [
        ("ViT-B-32", "openai"),
        ("ViT-B-16-SigLIP", "webli"),
        ("ViT-B-32-256", "datacomp_s34b_b86k"),
        ("MobileCLIP-S1", "datacompdr"),
    ],
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resize_mode": "longest"},
        {"resize_mode": "longest", "fill_color": 90},
        {"resize_mode": "squash"},
        {"interpolation": "random"},
    ],
)
def test_an_open_clip_configuration_gives_open_clips_transform(model, tag, changes):
    cfg = of_open_clip(model, tag, **changes)
    preprocess = Preprocess.of_open_clip(cfg, size=cfg["size"], where=model)
    transform = image_transform_v2(PreprocessCfg(**cfg), is_train=False)
    for image in pictures():
        assert torch.equal(normalized(image, preprocess), transform(image)), image.size


def test_open_clip_has_the_resize_modes_that_are_tried():
    assert of_open_clip("ViT-B-16-SigLIP", "webli")["resize_mode"] == "squash"
    assert asdict(PreprocessCfg())["resize_mode"] == "shortest"
    sparse = Preprocess.of_open_clip({"mean": 0.5, "std": (1, 1, 1)}, size=32, where="here")
    assert sparse == Preprocess(size=32, mean=(0.5,) * 3, std=(1, 1, 1))


def test_all_weights_that_the_libraries_list_are_read():
    """None is refused but those of images that are not square."""
    for name in timm.list_models(pretrained=True):
        cfg = of_timm(name)
        if cfg["input_size"][1] != cfg["input_size"][2]:
            with pytest.raises(InputError) as error:
                Preprocess.of_timm(cfg, size=None, where=name)
            assert error.value.code == "input-not-square"
            continue
        view = Preprocess.of_timm(cfg, size=None, where=name).center_view()
        assert (view.kind, view.crop_pct, view.interpolation) == (
            cfg["crop_mode"],
            cfg["crop_pct"],
            cfg["interpolation"],
        ), name
    kinds = {"shortest": "center", "squash": "squash", "longest": "border"}
    for model, tag in open_clip.list_pretrained():
        cfg = merge_preprocess_dict(PreprocessCfg(), open_clip.get_pretrained_cfg(model, tag))
        view = Preprocess.of_open_clip(cfg, size=224, where=model).center_view()
        assert (view.kind, view.interpolation) == (kinds[cfg["resize_mode"]], cfg["interpolation"]), model


def test_configurations_that_are_not_understood_are_refused():
    timms, open_clips = of_timm("resnet18.tv_in1k"), of_open_clip("ViT-B-32", "openai")
    hint = "Next: correct it, or use another model"
    cases = {
        "only models with three input channels are supported: here: found 1": timms | {"input_size": (1, 28, 28)},
        "only square inputs are supported: here: found 192x256": timms | {"input_size": (3, 192, 256)},
        "unknown interpolation in the model's configuration: here: expected ['bicubic', 'bilinear', 'lanczos', 'nearest'], "
        f"found random. {hint}": timms | {"interpolation": "random"},
        "unknown crop mode in the model's configuration: here: expected ['border', 'center', 'squash'], found mosaic. "
        f"{hint}": timms | {"crop_mode": "mosaic"},
        "not a mean of three channels: here: expected 3, found 1": timms | {"mean": (0.5,)},
    }
    for text, cfg in cases.items():
        with pytest.raises(InputError) as caught:
            Preprocess.of_timm(cfg, size=None, where="here")
        assert str(caught.value) == text
    cases = {
        "unknown interpolation in the model's configuration: here: expected ['bicubic', 'bilinear', 'random'], found "
        f"lanczos. {hint}": open_clips | {"interpolation": "lanczos"},
        "unknown resize mode in the model's configuration: here: expected ['longest', 'shortest', 'squash'], found "
        f"center. {hint}": open_clips | {"resize_mode": "center"},
        "not a std of three channels: here: expected 3, found 1": open_clips | {"std": (0.5,)},
    }
    for text, cfg in cases.items():
        with pytest.raises(InputError) as caught:
            Preprocess.of_open_clip(cfg, size=32, where="here")
        assert str(caught.value) == text


def test_what_was_written_before_reads_and_writes_as_before():
    """It is part of fingerprints and of bundles: what came later appears only where it is used."""
    old = Preprocess.from_json(WRITTEN)
    assert old == Preprocess(
        size=224, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bilinear", crop_pct=0.875
    )
    assert old.to_json() == WRITTEN
    assert old.center_view() == ViewSpec(interpolation="bilinear", crop_pct=0.875)
    for later in (
        {"crop_mode": "squash"},
        {"crop_mode": "border"},
        {"crop_mode": "border", "fill": [0, 0, 0]},
    ):
        read = Preprocess.from_json(WRITTEN | later)
        assert read.to_json() == WRITTEN | later
        assert Preprocess.from_json(read.to_json()) == read


def test_overrides_change_the_crop_mode_and_what_it_pads_with():
    own = Preprocess.from_json(WRITTEN)
    assert own.override(crop_mode=None, mean=None) == own
    squash = own.override(crop_mode="squash")
    assert squash.center_view() == ViewSpec(kind="squash", interpolation="bilinear", crop_pct=0.875)
    assert own.override(crop_mode="border").center_view().fill == (128, 102, 76)
    assert own.override(crop_mode="border", mean=(0.0, 0.2, 1.0)).center_view().fill == (0, 51, 255)
    black = Preprocess.from_json(WRITTEN | {"crop_mode": "border", "fill": [0, 0, 0]})
    assert black.override(mean=(0.1, 0.1, 0.1)).center_view().fill == (0, 0, 0)
    assert black.override(crop_mode="border").center_view().fill == (128, 102, 76)
    assert black.override(crop_mode="center") == own
    with pytest.raises(InputError) as error:
        own.override(crop_mode="border", mean=(123.7, 116.3, 103.5)).center_view()
    assert error.value.code == "fill-color-impossible"
