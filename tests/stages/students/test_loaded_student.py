"""A loaded student in somebody's own program: the example of the docs as written, tensors and arrays, one line to print."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from teachonce import load_student
from teachonce.pipeline.storage import Location
from teachonce.stages.models.compute import Compute
from teachonce.stages.predict import predict
from teachonce.stages.students.bundle import write_bundle
from teachonce.stages.students.head import Head
from teachonce.stages.students.registry import family_of
from teachonce.stages.students.student import Student
from teachonce.storage_schemas.bundle import BundleConfig
from teachonce.storage_schemas.class_vectors import ClassVectors
from torchvision.transforms import v2

DOCS = Path(__file__).parents[3] / "docs" / "students.md"
WIDTH, SIZE = 6, 48


def class_vectors(*, bias: bool = False, base: bool = False) -> ClassVectors:
    rng = np.random.default_rng(4)
    return ClassVectors(
        names=("x", "y", "z"),
        vectors_CD=rng.normal(size=(3, WIDTH)).astype(np.float32),
        bias_C=rng.normal(size=3).astype(np.float32) if bias else None,
        logit_scale=7.0,
        normalized=True,
        base_C=np.array([True, False, True]) if base else None,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with a bundle `student` and photographs that are neither square nor RGB."""
    monkeypatch.chdir(tmp_path)
    backbone = family_of("timm:test_vit").create("timm:test_vit", None, seed=0, size=SIZE)
    torch.manual_seed(3)
    head = Head(width=backbone.width, embed_dim=WIDTH, projector="linear", normalized=True)
    vectors = class_vectors()
    config = BundleConfig(
        student=backbone.config,
        head=head.to_json(),
        preprocess=backbone.preprocess.to_json(),
        class_names=vectors.names,
        logit_scale=vectors.logit_scale,
        normalized=True,
        origin={},
    )
    write_bundle(Location.of("student"), Student(backbone.module, backbone.preprocess, head), vectors, config)
    rng = np.random.default_rng(1)
    for i, name in enumerate(("a.jpg", "b.jpg")):
        small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
        small.resize((90 + 30 * i, 70), Image.Resampling.BICUBIC).convert("L" if i else "RGB").save(name)
    return tmp_path


def test_the_example_of_the_docs_runs_as_written(folder, capsys):
    (example,) = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    assert len(example.strip().splitlines()) <= 12
    names: dict[str, object] = {}
    exec(example, names)
    shown, *said = capsys.readouterr().out.splitlines()
    assert shown == "LoadedStudent('test_vit', 3 classes, width 6, images of 48x48 pixels)"
    told = list(
        predict("student", ["a.jpg", "b.jpg"], top=3, compute=Compute(device="cpu", precision="fp32", threads=1))
    )
    assert said == [one.top[0][0] for one in told]
    probability_NC = torch.softmax(names["logits_NC"], 1).numpy()  # type: ignore[arg-type]
    for row, one in zip(probability_NC, told, strict=True):
        order = [class_vectors().names.index(name) for name, _ in one.top]
        np.testing.assert_allclose(row[order], [p for _, p in one.top], atol=1e-6)


def test_pixels_are_what_the_library_shows_its_model(folder):
    bundle = load_student("student")
    ratio = bundle.preprocess.crop_pct
    assert bundle.preprocess.interpolation == "bicubic"
    assert bundle.preprocess.crop_mode == "center"
    theirs = v2.Compose(
        [
            v2.Resize(int(SIZE / ratio), v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(SIZE),
            v2.PILToTensor(),
        ]
    )
    for name in ("a.jpg", "b.jpg"):
        image = Image.open(name)
        ours_CHW = bundle.pixels(image)
        assert (ours_CHW.dtype, tuple(ours_CHW.shape)) == (torch.uint8, (3, SIZE, SIZE))
        assert torch.equal(ours_CHW, theirs(image.convert("RGB")))


@pytest.mark.parametrize("bias", [False, True])
def test_logits_of_tensors_are_those_of_arrays(bias):
    vectors = class_vectors(bias=bias)
    embedding_ND = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
    theirs_NC = 7.0 * F.linear(embedding_ND, torch.tensor(vectors.vectors_CD))
    theirs_NC = theirs_NC + torch.tensor(vectors.bias_C) if bias else theirs_NC
    from_array, from_tensor = vectors.logits(embedding_ND.numpy()), vectors.logits(embedding_ND)
    assert (type(from_array), from_array.dtype) == (np.ndarray, np.float32)
    assert (type(from_tensor), from_tensor.dtype) == (torch.Tensor, torch.float32)
    torch.testing.assert_close(from_tensor, theirs_NC)
    np.testing.assert_allclose(from_array, theirs_NC.numpy(), rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_logits_of_tensors():
    vectors = class_vectors(bias=True)
    embedding_ND = torch.randn(2, WIDTH, requires_grad=True)
    vectors.logits(embedding_ND)[:, 1].sum().backward()
    torch.testing.assert_close(embedding_ND.grad, 7.0 * torch.tensor(vectors.vectors_CD)[1].expand(2, -1))


def test_logits_are_fp32_whatever_comes_in_and_stay_where_it_lies():
    vectors = class_vectors()
    embedding_ND = torch.randn(4, WIDTH).to(torch.bfloat16)
    exact_NC = vectors.logits(embedding_ND.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vectors.logits(embedding_ND), exact_NC)
    assert vectors.logits(torch.empty(4, WIDTH, device="meta")).device.type == "meta"
    halves_ND = np.ones((2, WIDTH), np.float16)
    assert vectors.logits(halves_ND).dtype == np.float32


def test_vectors_that_cannot_be_written_to_are_not_warned_of():
    vectors = class_vectors(bias=True)
    for array in (vectors.vectors_CD, vectors.bias_C):
        array.setflags(write=False)
    assert vectors.logits(torch.ones(1, WIDTH)).shape == (1, 3)


def test_bundles_and_class_vectors_print_on_one_line(folder):
    bundle = load_student("student")
    assert f"{bundle}" == repr(bundle) == "LoadedStudent('test_vit', 3 classes, width 6, images of 48x48 pixels)"
    assert repr(bundle.vectors) == "ClassVectors(3 classes, width 6, logit scale 7)"
    marked = class_vectors(bias=True, base=True)
    assert repr(marked) == "ClassVectors(3 classes, 2 of them base, width 6, logit scale 7, with a bias)"
