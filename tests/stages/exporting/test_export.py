"""Exports: what other programs load computes what the student does; what has no exact counterpart is refused, and leaves nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from click.testing import CliRunner
from PIL import Image
from teachonce import load_student
from teachonce.cli import main
from teachonce.pipeline.storage import Location
from teachonce.stages.export import FILES, export_bundle
from teachonce.stages.settings.export import PIXELS, ExportSettings
from teachonce.stages.students.bundle import write_bundle
from teachonce.stages.students.head import Head
from teachonce.stages.students.registry import family_of
from teachonce.stages.students.student import Student
from teachonce.storage_schemas.bundle import BundleConfig
from teachonce.storage_schemas.class_vectors import ClassVectors
from teachonce.storage_schemas.errors import DamagedError, InputError, MissingDependency

# What torch says of TorchScript since 2.15.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")

WIDTH = 6
MAPS = Path(__file__).parents[2] / "data" / "maps" / "student"


@pytest.fixture(scope="module")
def make(tmp_path_factory, tiny_clip):
    """`make("timm:test_resnet", projector="mlp", …)`: the folder of a bundle with random weights, no two batch norms alike."""

    def one(
        name: str,
        projector: str = "linear",
        *,
        normalized: bool = True,
        prompts: bool = False,
        bias: bool = False,
        classes: bool = True,
        size: int | None = None,
        **preprocess,
    ) -> str:
        name = name.replace("TINY", str(tiny_clip))
        backbone = family_of(name).create(name, None, seed=0, size=size)
        torch.manual_seed(3)
        width = backbone.width if projector == "none" else WIDTH
        head = Head(
            width=backbone.width,
            embed_dim=width,
            projector=projector,
            normalized=normalized,
            prompt_depth=2 if prompts else 0,
            prompt_length=3 if prompts else 0,
        )
        rng = np.random.default_rng(4)
        vectors = ClassVectors(
            names=("x", "y ü", "z"),
            vectors_CD=rng.normal(size=(3, width)).astype(np.float32),
            bias_C=rng.normal(size=3).astype(np.float32) if bias else None,
            logit_scale=7.0,
            normalized=normalized,
        )
        seen = replace(backbone.preprocess, **preprocess)
        student = Student(backbone.module, seen, head)
        for module in student.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                torch.nn.init.normal_(module.running_mean, 0, 0.1)
                torch.nn.init.uniform_(module.running_var, 0.5, 2)
        config = BundleConfig(
            student=backbone.config,
            head=head.to_json(),
            preprocess=seen.to_json(),
            class_names=vectors.names if classes else (),
            logit_scale=vectors.logit_scale,
            normalized=normalized,
            origin={"recipe": "kd", "targets": ["embedding"]},
        )
        folder = tmp_path_factory.mktemp("bundle")
        write_bundle(Location.of(folder), student, vectors if classes else None, config)
        return str(folder)

    return one


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Five pictures of several shapes, and a file that is none."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for index in range(5):
        small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8))
        small.resize((40 + 60 * index, 120), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def export(bundle: str, to: str, out: Path, **settings):
    return export_bundle(bundle, out=str(out), settings=ExportSettings(to=to, **settings))


STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "timm resnet": ("timm:test_resnet", {}),
    "timm resnet mlp": ("timm:test_resnet", {"projector": "mlp"}),
    "timm vit, a linear teacher": ("timm:test_vit", {"normalized": False, "bias": True, "size": 48}),
    "timm efficientnet": ("timm:test_efficientnet", {"projector": "none", "crop_pct": 0.875}),
    "open_clip": ("local-dir:TINY", {"projector": "none"}),
    "open_clip linear": ("local-dir:TINY", {"bias": True}),
    "open_clip promptkd": ("local-dir:TINY", {"projector": "mlp", "prompts": True}),
}


ONNX = [pytest.param("onnx", kind, marks=() if kind == "open_clip promptkd" else pytest.mark.slow) for kind in STUDENTS]


@pytest.mark.parametrize(("to", "kind"), [*ONNX, *(("torchscript", kind) for kind in STUDENTS)])
def test_graphs_of_every_student(make, photos, tmp_path, kind, to):
    if to == "onnx":
        pytest.importorskip("onnxscript")
    name, options = STUDENTS[kind]
    bundle = make(name, **options)
    pixels = PIXELS[list(STUDENTS).index(kind) % 3]
    found = export(bundle, to, tmp_path / "out", images=str(photos), pixels=pixels)
    assert (found.result, found.difference.images, found.difference.first_class) == ("logits", 5, 5)
    assert found.difference.share < 1e-5
    # As somebody who has the file and export.json alone.
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    images = [Image.open(path).convert("RGB") for path in sorted(photos.glob("[0-9].png"))]
    student = load_student(bundle)
    batch_NHWC = np.stack([student.pixels(image).permute(1, 2, 0).numpy() for image in images])
    assert about["input"]["size"] == list(batch_NHWC.shape[1:3])
    if not about["input"]["normalised_inside"]:
        step = about["preprocessing"]["3_normalise"]
        batch_NHWC = ((batch_NHWC * step["scale"] - step["mean"]) / step["std"]).astype(np.float32)
    batch = batch_NHWC if about["input"]["layout"] == "NHWC" else np.ascontiguousarray(batch_NHWC.transpose(0, 3, 1, 2))
    assert (str(batch.dtype), about["output"]["classes"]) == (about["input"]["dtype"], ["x", "y ü", "z"])
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
        (logits_NC,) = session.run(None, {about["input"]["name"]: batch})
    else:
        with torch.no_grad():
            logits_NC = torch.jit.load(str(tmp_path / "out" / "model.pt"))(torch.from_numpy(batch)).numpy()
    expected = np.log([one.probabilities_C for one in student.predict(images)])
    shifted = logits_NC - np.log(np.exp(logits_NC).sum(1, keepdims=True))
    np.testing.assert_allclose(shifted, expected, atol=2e-4)


def test_how_images_are_resized_is_told(make, tmp_path):
    """The steps of export.json, done by hand, are the student's own pixels."""
    bundle = make("timm:test_resnet", crop_pct=0.875)
    export(bundle, "torchscript", tmp_path / "out")
    steps = json.loads((tmp_path / "out" / "export.json").read_text())["preprocessing"]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 301, 3), np.uint8))
    assert steps["1_resize"]["how"] == "the shorter side"
    to, (size, _) = steps["1_resize"]["to"], steps["2_crop"]["size"]
    resized = image.resize((int(to * 301 / 90), to), getattr(Image.Resampling, steps["1_resize"]["filter"].upper()))
    left, top = round((resized.width - size) / 2), round((to - size) / 2)
    cropped = np.asarray(resized.crop((left, top, left + size, top + size)))
    np.testing.assert_array_equal(load_student(bundle).pixels(image).permute(1, 2, 0).numpy(), cropped)


@pytest.mark.parametrize(("result", "width"), [("embedding", WIDTH), ("features", None)])
def test_other_results(make, tmp_path, result, width):
    bundle = make("timm:test_resnet")
    found = export(bundle, "torchscript", tmp_path / "out", result=result)
    output = torch.jit.load(str(tmp_path / "out" / "model.pt"))(torch.zeros(1, 3, 160, 160))
    assert output.shape == (1, width or load_student(bundle).student.head.width)
    assert found.difference.first_class is None
    vectors = safetensors.numpy.load_file(tmp_path / "out" / "class_vectors.safetensors")["vectors"]
    np.testing.assert_array_equal(vectors, load_student(bundle).vectors.vectors_CD)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm:test_resnet", {"bias": True, "crop_pct": 0.875}),
        ("timm:test_vit", {"projector": "none", "size": 48}),
        ("timm:test_efficientnet", {"bias": True, "crop_mode": "squash", "crop_pct": 1.0}),
        ("timm:test_vit", {"crop_mode": "border", "crop_pct": 1.0}),
        ("timm:mobilenetv3_small_050", {}),
        ("timm:deit_tiny_distilled_patch16_224", {}),
        ("timm:resnetv2_18", {}),
    ],
    ids=str,
)
def test_timm_makes_a_classifier_of_projector_and_class_vectors(make, photos, tmp_path, name, options):
    import timm

    bundle = make(name, normalized=False, **options)
    found = export(bundle, "timm", tmp_path / "out", images=str(photos))
    assert (found.result, found.difference.first_class) == ("logits", 5)
    assert found.difference.share < 1e-5
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert (model.num_classes, model.pretrained_cfg["label_names"]) == (3, ["x", "y ü", "z"])


@pytest.mark.parametrize("classes", [True, False])
def test_timm_takes_features_of_any_student(make, tmp_path, classes):
    import timm

    bundle = make("timm:test_resnet", "mlp", classes=classes)
    found = export(bundle, "timm", tmp_path / "out", result="features" if classes else None)
    assert found.result == "features"
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.num_classes == 0
    assert (tmp_path / "out" / "class_vectors.safetensors").exists() == classes


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("local-dir:TINY", {"projector": "none"}),
        ("local-dir:TINY", {"projector": "none", "crop_mode": "squash", "interpolation": "bicubic"}),
        ("local-dir:TINY", {"projector": "none", "crop_mode": "border", "fill": (0, 0, 0)}),
        ("timm:test_resnet", {"crop_pct": 1.0}),
        ("timm:test_vit", {"projector": "none", "crop_pct": 1.0}),
    ],
    ids=str,
)
def test_open_clip_classifies_with_the_class_vectors(make, photos, tmp_path, name, options):
    import open_clip

    bundle = make(name, **options)
    found = export(bundle, "open_clip", tmp_path / "out", images=str(photos))
    assert found.result == "embedding"
    assert found.difference.share < 1e-5
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    vectors_CD = torch.from_numpy(
        safetensors.numpy.load_file(tmp_path / "out" / "class_vectors.safetensors")["vectors"]
    )
    images = [Image.open(path).convert("RGB") for path in sorted(photos.glob("[0-9].png"))]
    with torch.no_grad():
        features_ND = model.eval().encode_image(torch.stack([transform(image) for image in images]), normalize=True)
        shares_NC = (model.logit_scale.exp() * features_ND @ vectors_CD.T).softmax(1)
        words = model.encode_text(torch.randint(1, 40000, (2, 77)), normalize=True)
    for own, other in zip(load_student(bundle).predict(images), shares_NC.numpy(), strict=True):
        np.testing.assert_allclose(other, own.probabilities_C, atol=1e-5)
    assert model.logit_scale.item() == pytest.approx(math.log(7))
    assert not words.any()  # no text tower came with the student: nothing here looks like an answer


NO_COUNTERPART = [
    ("local-dir:TINY", {}, {"to": "timm"}, "a tower of open_clip's"),
    ("timm:test_resnet", {}, {"to": "timm"}, "embeddings that are normalised, as CLIP's are"),
    ("timm:test_resnet", {"normalized": False, "projector": "mlp"}, {"to": "timm"}, "--projector mlp"),
    ("timm:test_resnet", {}, {"to": "timm", "result": "embedding"}, "--result embedding"),
    (
        "timm:test_resnet",
        {"normalized": False, "crop_mode": "border", "fill": (1, 2, 3)},
        {"to": "timm"},
        "fill (1, 2, 3)",
    ),
    ("local-dir:TINY", {}, {"to": "open_clip"}, "--projector linear behind it"),
    ("local-dir:TINY", {"projector": "mlp", "prompts": True}, {"to": "open_clip"}, "visual prompts"),
    ("local-dir:TINY", {"projector": "none", "bias": True}, {"to": "open_clip"}, "with a bias"),
    ("local-dir:TINY", {"projector": "none"}, {"to": "open_clip", "result": "logits"}, "--result logits"),
    ("timm:test_resnet", {"normalized": False}, {"to": "open_clip"}, "a student of a classifier"),
    ("timm:test_resnet", {"projector": "mlp", "crop_pct": 1.0}, {"to": "open_clip"}, "--projector mlp"),
    ("timm:test_resnet", {"crop_pct": 0.875}, {"to": "open_clip"}, "a crop of 0.875, bilinear"),
    ("timm:test_vit", {"size": 48, "crop_pct": 1.0}, {"to": "open_clip"}, "{'img_size': 48}"),
    ("timm:mobilenetv3_small_050", {"crop_pct": 1.0}, {"to": "open_clip"}, "none of that shape"),
]


@pytest.mark.parametrize(("name", "options", "settings", "found"), NO_COUNTERPART, ids=str)
def test_what_has_no_exact_counterpart_is_refused(make, tmp_path, name, options, settings, found):
    with pytest.raises(InputError) as error:
        export(make(name, **options), out=tmp_path / "out", **settings)
    assert (error.value.code, str(error.value.found).endswith(found)) == ("export-impossible", True), error.value.found
    assert not (tmp_path / "out").exists()


def test_a_student_without_classes_gives_its_embedding(tmp_path):
    found = export(str(MAPS), "torchscript", tmp_path / "out")
    assert found.result == "embedding"
    with pytest.raises(InputError, match="this student has no class vectors"):
        export(str(MAPS), "torchscript", tmp_path / "other", result="logits")
    assert not (tmp_path / "other").exists()


def test_an_export_that_differs_leaves_nothing(make, tmp_path, monkeypatch):
    """Not the folder either, unless it was there; and not what an earlier export left in it."""
    (tmp_path / "there").mkdir()
    good, there = make("timm:test_resnet"), tmp_path / "there"
    export(good, "torchscript", there)
    from teachonce.stages.exporting import graph

    real = graph.Graph.forward
    monkeypatch.setattr(graph.Graph, "forward", lambda self, images: real(self, images) * 1.001)
    for out in (there, tmp_path / "new"):
        with pytest.raises(DamagedError) as error:
            export(good, "torchscript", out)
        assert error.value.line.startswith(
            f"the export does not compute what the student does: {good}: expected a difference of at most 0.0001 of the largest"
        )
        assert error.value.code == "export-differs"
    assert list(there.iterdir()) == []
    assert not (tmp_path / "new").exists()
    assert export(good, "torchscript", there, tolerance=0.01).difference.share == pytest.approx(1e-3, rel=0.05)


def test_a_program_for_one_number_of_images_is_found(make, tmp_path, monkeypatch):
    from teachonce.stages.exporting import graph

    real = graph.Graph.forward

    def fixed(self, images):
        return real(self, images) + torch.zeros(len(images), 1)

    monkeypatch.setattr(graph.Graph, "forward", fixed)
    with pytest.raises(DamagedError, match="expected any number of images"):
        export(make("timm:test_resnet"), "torchscript", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_replaces_an_earlier_one_and_nothing_else(make, tmp_path):
    bundle, out = make("local-dir:TINY", "none"), tmp_path / "out"
    export(bundle, "open_clip", out)
    (out / "README").write_text("mine")
    export(bundle, "torchscript", out)
    assert sorted(p.name for p in out.iterdir()) == ["README", "export.json", "model.pt"]
    (out / "export.json").unlink()
    with pytest.raises(InputError, match="the output folder holds something else"):
        export(bundle, "torchscript", out)
    with pytest.raises(InputError, match="the output folder"):
        export(bundle, "torchscript", Path(bundle))
    assert {p.name for p in out.iterdir()} <= {"README", *FILES}


@pytest.mark.parametrize(
    ("settings", "code", "where"),
    [
        ({"to": "timm", "pixels": "uint8-nhwc"}, "options-exclude-each-other", "--pixels uint8-nhwc"),
        ({"to": "onnx", "tolerance": 0.0}, "setting-impossible", "--tolerance"),
        ({"to": "pickle"}, "setting-impossible", "--to"),
    ],
)
def test_settings_that_cannot_be(make, tmp_path, settings, code, where):
    with pytest.raises(InputError) as error:
        export(make("timm:test_resnet"), out=tmp_path / "out", **settings)
    assert (error.value.code, error.value.where) == (code, where)


def test_images_that_cannot_be_used(make, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="no usable image"):
        export(make("timm:test_resnet"), "torchscript", tmp_path / "out", images=str(tmp_path / "bad"))
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named(make, tmp_path, monkeypatch):
    from importlib import util

    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *a: None if name == "onnxscript" else real(name, *a))
    with pytest.raises(MissingDependency) as error:
        export(make("timm:test_resnet"), "onnx", tmp_path / "out")
    assert error.value.line == (
        "an export to ONNX needs onnxscript [package-missing]. Next: pip install 'teachonce[export]'"
    )


@pytest.mark.slow
def test_a_form_takes_what_it_can_hold(make, monkeypatch, tmp_path):
    pytest.importorskip("onnxscript")
    from teachonce.stages.exporting import onnx

    monkeypatch.setattr(onnx, "LARGEST_FILE", 1000)
    with pytest.raises(InputError) as error:
        export(make("timm:test_resnet"), "onnx", tmp_path / "out")
    assert error.value.code == "export-too-large"


def test_the_command(make, photos, tmp_path):
    bundle, out = make("timm:test_resnet"), tmp_path / "out"
    words = ["export", bundle, "--to", "torchscript", "--out", str(out), "--images", str(photos)]
    done = CliRunner().invoke(main, words)
    assert (done.exit_code, done.stdout) == (0, "")
    first, second, third = done.stderr.splitlines()[-3:]
    assert first.startswith("export: torchscript: model.pt (")
    assert second.startswith("export: logits differ from the student's by at most ")
    assert second.endswith(f"on 5 images of {photos}; the first class is the same for 5 of them")
    assert third == f"export: load it with torch.jit.load('{out}/model.pt')(images)"
    told = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert (told["form"], told["checked"]["first_class"], list(told["files"])) == ("torchscript", 5, ["model.pt"])
    assert told["checked"]["share"] == told["checked"]["greatest"] / told["checked"]["largest"]
