"""One model of each class of towers through `vectors`, `cache` and `distill`, its numbers those of plain open_clip."""

from __future__ import annotations

import warnings

import numpy as np
import open_clip
import pytest
import torch
import xarray
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.stages.students.bundle import load_student

NAMES = ("red fox", "Blue_Jay", "house-cat")

#: By the class of the image tower, or of the text tower where that is what is special.
CLASSES = {
    "VisionTransformer": "ViT-B-32-quickgelu",
    "ModifiedResNet": "RN50",
    "TimmModel": "ViT-B-16-SigLIP",
    "CoCa": "coca_ViT-B-32",
    "HFTextEncoder": "xlm-roberta-base-ViT-B-32",
}


def run(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    return result.stderr


@pytest.mark.parametrize("name", CLASSES.values(), ids=CLASSES)
def test_what_is_stored_is_what_plain_open_clip_says(name, clip_kinds, pictures, picture_shards, tmp_path):
    config = clip_kinds.shrink(name, tmp_path / "texts")
    folder = clip_kinds.write_model(tmp_path / "model", config, {"resize_mode": "squash", "interpolation": "bicubic"})
    model, store, shards = f"local-dir:{folder}", tmp_path / "s.zarr", picture_shards.location
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    told = run("vectors", "--teacher", model, "--classes", tmp_path / "classes.txt", "--threads", 1, "--out", store)
    assert told.startswith("vectors: teacher local-dir:model: weights those of local-dir:model, digest ")
    run(
        "cache",
        shards,
        "--teacher",
        model,
        "--targets",
        "both",
        "--encoding",
        "fp32",
        "--precision",
        "fp32",
        "--threads",
        1,
        "--executor",
        "serial",
        "--out",
        store,
    )
    run(
        "distill",
        shards,
        store,
        "--student",
        model,
        "--recipe",
        "kd",
        "--epochs",
        1,
        "--batch-size",
        8,
        "--decode-workers",
        0,
        "--threads",
        1,
        "--out",
        tmp_path / "b",
    )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, _, transform = open_clip.create_model_and_transforms(model, pretrained_text=False)
    plain.eval()
    data = xarray.open_zarr(str(store), consolidated=False).load()
    entries = list(picture_shards.manifest())
    rows = [row for row in range(len(entries)) if bool(data["valid"][row])][::7]
    tokenizer = open_clip.get_tokenizer(model)
    with torch.no_grad():
        images = [Image.open(pictures / entries[row].path).convert("RGB") for row in rows]
        features_ND = plain.encode_image(torch.stack([transform(image) for image in images]))
        features_ND = torch.nn.functional.normalize(features_ND, dim=-1)
        texts = tokenizer([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
        vectors_CD = torch.nn.functional.normalize(plain.encode_text(texts), dim=-1)
        logits_NC = plain.logit_scale.exp() * features_ND @ vectors_CD.T
        if getattr(plain, "logit_bias", None) is not None:
            logits_NC = logits_NC + plain.logit_bias
    np.testing.assert_allclose(data["embedding"].values[rows, 0], features_ND, atol=1e-5)
    np.testing.assert_allclose(data["class_vectors"].values, vectors_CD, atol=1e-5)
    np.testing.assert_allclose(data["logits"].values[rows, 0], logits_NC, atol=1e-5 * np.exp(2.5))
    student = load_student(str(tmp_path / "b"))
    assert student.vectors.names == NAMES
    assert student.config.preprocess["crop_mode"] == "squash"
