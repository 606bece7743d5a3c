"""Teachers of every kind in open_clip's registry, against plain open_clip on the same photographs."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.teachers.open_clip import OpenClipTeacher

NAMES = ("red fox", "Blue_Jay", "a very small house cat", "x")
TEMPLATES = ("a photo of a {}.", "art of the {}")

#: Preprocessing that differs from the default in every field.
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bilinear"}

#: One small model of each class of towers, quick enough for every run; `test_every_kind` has the rest.
CLASSES = {
    "VisionTransformer": "ViT-B-32-quickgelu",
    "ModifiedResNet": "RN50",
    "TimmModel": "convnext_base",
    "CustomTextCLIP": "ViT-B-16-SigLIP",
    "CoCa": "coca_ViT-B-32",
}


def check_equal(folder: Path, photographs, pixels_for) -> None:
    """Embeddings, class vectors and logits of our teacher and of plain open_clip, to 1e-5."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        teacher = OpenClipTeacher.load(TeacherConfig.of(f"local-dir:{folder}"))
        plain, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", pretrained_text=False)
    plain.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        embedding_ND = teacher.embed(torch.from_numpy(pixels_for(teacher, photographs)))
        vectors = teacher.class_vectors(NAMES, TEMPLATES)
        images_NCHW = torch.stack([transform(image) for image in photographs])
        features_ND = torch.nn.functional.normalize(plain.encode_image(images_NCHW), dim=-1)
        texts = [[t.replace("{}", name.replace("_", " ")) for t in TEMPLATES] for name in NAMES]
        features_CTD = torch.stack(
            [torch.nn.functional.normalize(plain.encode_text(tokenizer(t)), dim=-1) for t in texts]
        )
        vectors_CD = torch.nn.functional.normalize(features_CTD.mean(dim=1), dim=-1)
        logits_NC = plain.logit_scale.exp() * features_ND @ vectors_CD.T
        if getattr(plain, "logit_bias", None) is not None:
            logits_NC = logits_NC + plain.logit_bias
    assert teacher.spec.embed_dim == features_ND.shape[1]
    np.testing.assert_allclose(embedding_ND, features_ND, atol=1e-5)
    np.testing.assert_allclose(vectors.vectors_CD, vectors_CD, atol=1e-5)
    np.testing.assert_allclose(vectors.logits(embedding_ND.numpy()), logits_NC, atol=1e-5 * np.exp(2.5))
    assert float((embedding_ND[0] - embedding_ND[1]).abs().max()) > 1e-3, "the photographs are told apart"


@pytest.mark.parametrize("name", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_each_class_of_towers(clip_kinds, name, resize_mode, tmp_path, photographs, pixels_for):
    config = clip_kinds.shrink(name, tmp_path / "texts")
    folder = clip_kinds.write_model(tmp_path / "model", config, PREPROCESS | {"resize_mode": resize_mode})
    check_equal(folder, photographs, pixels_for)


@pytest.mark.slow
def test_every_kind(clip_kinds, tmp_path, photographs, pixels_for):
    has_transformers = importlib.util.find_spec("transformers") is not None
    kinds = clip_kinds.kinds()
    assert len(kinds) >= 30
    for name in kinds:
        if clip_kinds.needs_transformers(name) and not has_transformers:
            continue
        config = clip_kinds.shrink(name, tmp_path / "texts")
        folder = clip_kinds.write_model(tmp_path / name, config, PREPROCESS)
        try:
            check_equal(folder, photographs[1:], pixels_for)  # one of each orientation
        except Exception as error:
            raise AssertionError(f"{name}: {error}") from error
