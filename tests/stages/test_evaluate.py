"""`evaluate` and `predict` on a real tiny bundle, against torchvision's transforms and plain arithmetic."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline.storage import Location
from teachonce.stages.decoding.processes import Processes
from teachonce.stages.decoding.threads import Threads
from teachonce.stages.evaluate import evaluate
from teachonce.stages.inputs.image_set import shows_many
from teachonce.stages.models import picture_pool
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.forward import Forward
from teachonce.stages.predict import predict
from teachonce.stages.reports.evaluate_text import evaluation_json, evaluation_text
from teachonce.stages.samples.pixel_sample import PixelSample
from teachonce.stages.settings.evaluate import EvaluateSettings
from teachonce.stages.students.bundle import load_student, write_bundle
from teachonce.stages.students.head import Head
from teachonce.stages.students.registry import family_of
from teachonce.stages.students.student import Student
from teachonce.stages.views.spec import INTERPOLATIONS, ViewSpec
from teachonce.storage_schemas.bundle import BundleConfig
from teachonce.storage_schemas.class_vectors import ClassVectors
from teachonce.storage_schemas.errors import DamagedError, InputError, MismatchError
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

NAMES = ("blue jay", "otter", "red fox, Vulpes vulpes", "newt", "house cat", "wasp", "yak", "zebra")
LABELS = {"Blue_Jay": 0, "red fox": 2, "house-cat": 4}
COMPUTE = Compute(device="cpu", precision="fp32", threads=1)


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(8)
    vectors_CD = rng.normal(size=(len(NAMES), 6)).astype(np.float32)
    bias_C = rng.normal(size=len(NAMES)).astype(np.float32)
    return ClassVectors(names=NAMES, vectors_CD=vectors_CD, bias_C=bias_C, logit_scale=9.0, normalized=True)


@pytest.fixture(scope="module")
def bundle(tiny_clip, vectors, tmp_path_factory) -> Path:
    """A student with random weights, as `distill` would leave it."""
    backbone = family_of(f"local-dir:{tiny_clip}").create(f"local-dir:{tiny_clip}", None, seed=0, size=None)
    head = Head(width=backbone.width, embed_dim=6, projector="linear", normalized=True)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        student = Student(backbone.module, backbone.preprocess, head)
    config = BundleConfig(
        student=backbone.config,
        head=head.to_json(),
        preprocess=backbone.preprocess.to_json(),
        class_names=NAMES,
        logit_scale=vectors.logit_scale,
        normalized=True,
        origin={"recipe": "none"},
    )
    folder = tmp_path_factory.mktemp("bundle") / "b"
    write_bundle(Location.of(folder), student, vectors, config)
    return folder


@pytest.fixture(scope="module")
def plain(bundle, vectors):
    """Pillow images to logits (N, C): torchvision's Normalize, the student's layers, nothing else of ours."""
    loaded = load_student(str(bundle))
    prepare = loaded.preprocess
    normalize = Compose([ToTensor(), Normalize(prepare.mean, prepare.std)])

    @torch.inference_mode()
    def logits(images):
        features = loaded.student.backbone(torch.stack([normalize(image) for image in images]))
        embedding = loaded.student.projector(features).numpy()
        embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
        return 9.0 * embedding @ vectors.vectors_CD.T + vectors.bias_C

    logits.interpolation = {  # type: ignore[attr-defined]
        "bicubic": Image.Resampling.BICUBIC,
        "bilinear": Image.Resampling.BILINEAR,
    }[prepare.interpolation]
    logits.center = Compose([Resize(32, InterpolationMode(prepare.interpolation)), CenterCrop(32)])  # type: ignore[attr-defined]
    return logits


def usable_files(pictures):
    return [p for p in sorted(pictures.rglob("*.*"), key=lambda p: str(p).encode()) if "b" not in p.stem]


@pytest.fixture(scope="module")
def expected(pictures, plain):
    """(logits, labels) of all usable pictures."""
    files = usable_files(pictures)
    logits = plain([plain.center(Image.open(f).convert("RGB")) for f in files])
    return logits, [LABELS[f.parent.name] for f in files]


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def error_of(kind, bundle, images, **options):
    with pytest.raises(kind) as error:
        evaluate(str(bundle), str(images), compute=COMPUTE, settings=EvaluateSettings(**options))
    return str(error.value)


def test_accuracies_are_those_of_plain_arithmetic(bundle, pictures, expected):
    logits_NC, labels = expected
    facts = evaluation_json(
        evaluate(
            str(bundle),
            str(pictures),
            compute=COMPUTE,
            settings=EvaluateSettings(base_classes="@half", batch_size=7),
        )
    )
    order = np.argsort(-logits_NC, axis=1)
    right = [o[0] == label for o, label in zip(order, labels, strict=True)]
    share = sum(right) / 46
    stderr = pytest.approx(math.sqrt(share * (1 - share) / 46))
    assert facts["accuracy"]["top1"] == {"rate": share, "stderr": stderr, "correct": sum(right), "total": 46}
    assert facts["accuracy"]["top5"]["correct"] == sum(label in o[:5] for o, label in zip(order, labels, strict=True))
    by_class = {NAMES[c]: [r for r, label in zip(right, labels, strict=True) if label == c] for c in (0, 2, 4)}
    assert {c["class"]: (c["images"], c["top1"]) for c in facts["classes"]} == {
        name: (len(r), sum(r) / len(r)) for name, r in by_class.items()
    }
    assert facts["accuracy"]["mean_per_class"]["mean"] == pytest.approx(
        sum(sum(r) / len(r) for r in by_class.values()) / 3
    )
    shares = []
    for side, classes in (("base", range(4)), ("novel", range(4, 8))):
        mine = [i for i, label in enumerate(labels) if label in classes]
        correct = sum(classes[int(np.argmax(logits_NC[i, list(classes)]))] == labels[i] for i in mine)
        assert (facts["base_novel"][side]["correct"], facts["base_novel"][side]["total"]) == (
            correct,
            len(mine),
        )
        shares.append(correct / len(mine))
    harmonic = 2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0
    assert facts["base_novel"]["harmonic_mean"]["mean"] == pytest.approx(harmonic)
    assert [c["split"] for c in facts["classes"]] == ["base", "base", "novel"]
    assert facts["images"] == {
        "found": 48,
        "usable": 46,
        "labelled": 46,
        "unusable": [
            {"path": "Blue_Jay/20b.jpg", "reason": "truncated image"},
            {"path": "red fox/07b.jpg", "reason": "empty file"},
        ],
        "left_out": [],
    }
    assert facts["labels"]["matched"] == {label: NAMES[i] for label, i in LABELS.items()}


def test_tar_list_and_shards_measure_the_same(bundle, pictures, picture_shards, tmp_path):
    whole = evaluation_json(evaluate(str(bundle), str(pictures), compute=COMPUTE))
    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        tar.add(pictures, arcname=".")
        tar.add(pictures / "red fox" / "03.jpg", arcname="./red fox/._03.jpg")
    files = [p for p in pictures.rglob("*.*") if p.is_file()]
    (tmp_path / "list.txt").write_text("".join(f"{p}\t{p.parent.name}\n" for p in files))
    for images in (tmp_path / "p.tar", tmp_path / "list.txt", picture_shards.location.path):
        facts = evaluation_json(evaluate(str(bundle), str(images), compute=COMPUTE))
        for key in ("accuracy", "labels", "classes"):
            assert facts[key] == whole[key]
        assert [bad["reason"] for bad in facts["images"]["unusable"]] == ["truncated image", "empty file"]
        left_out = [{"kind": "hidden", "entries": 1, "first": "red fox/._03.jpg"}] if images.suffix == ".tar" else []
        assert facts["images"]["left_out"] == left_out
    assert "left out: 1 × hidden (first: red fox/._03.jpg)" in run("evaluate", bundle, tmp_path / "p.tar")[2]


def test_labels_that_are_no_class_are_left_out_loudly(bundle, pictures, tmp_path):
    for folder in ("red fox", "unicorn", "vulpes"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    good = usable_files(pictures)
    for i, folder in enumerate(["red fox", "unicorn", "unicorn", "vulpes"]):
        (tmp_path / "set" / folder / good[i].name).write_bytes(good[i].read_bytes())
    (tmp_path / "set" / "alone.jpg").write_bytes((pictures / "red fox" / "03.jpg").read_bytes())
    facts = evaluation_json(evaluate(str(bundle), str(tmp_path / "set"), compute=COMPUTE))
    assert facts["accuracy"]["top1"]["total"] == 1
    assert facts["labels"]["unlabelled_images"] == 1
    assert facts["labels"]["unmatched"] == [
        {"label": "unicorn", "images": 2, "reason": "no such class"},
        {"label": "vulpes", "images": 1, "reason": "no such class"},
    ]
    code, out, err = run("evaluate", bundle, tmp_path / "set")
    assert code == 0
    assert "LEFT OUT of every accuracy: 3 images of 2 labels that are no class" in out
    assert "Left out of every accuracy, since their labels are no class: 3 images of 2 labels." in err


def test_what_is_no_label_is_told(bundle, pictures, tmp_path):
    good = usable_files(pictures)[:3]
    lines = [{"path": str(file), "label": label} for file, label in zip(good, ("red fox", True, None), strict=True)]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, out, err = run("evaluate", bundle, tmp_path / "l.jsonl", "--json")
    assert code == 0
    labels = json.loads(out)["labels"]
    assert labels["no_labels"] == [{"kind": "a truth value", "images": 1, "first": str(good[1])}]
    assert (labels["matched"], labels["unlabelled_images"]) == ({"red fox": NAMES[2]}, 2)
    assert f"left out as none: 1 × a truth value (first: {good[1]})" in err


def known_view_logits(known, plain, pictures, view=0):
    """Logits of the student on the stored boxes, by plain Pillow."""
    params = zarr.open_group(str(known.location), mode="r")["view_params"][:, view]
    files = sorted((p for p in pictures.rglob("*.*")), key=lambda p: str(p).encode())
    rows = np.flatnonzero(known.valid)
    images = []
    for row in rows:
        top, left, height, width, flip = params[row].tolist()
        image = Image.open(files[row]).convert("RGB").crop((left, top, left + width, top + height))
        image = image.resize((32, 32), Image.Resampling.BICUBIC)
        images.append(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)
    return rows, plain(images)


def test_agreement_is_measured_on_the_stored_view(
    bundle, pictures, picture_shards, plain, vectors, make_store, tmp_path
):
    known = make_store(picture_shards, tmp_path / "s", widths={"logits": 8}, vectors=vectors, also_invalid=(5,))
    rows, student_NC = known_view_logits(known, plain, pictures)
    teacher_NC = known.targets["logits"][rows, 0].astype(np.float64)

    def softmax(logits):
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    p, q = softmax(teacher_NC), softmax(student_NC.astype(np.float64))
    kl_N = (p * np.log(p / q)).sum(1)
    same = int((p.argmax(1) == q.argmax(1)).sum())
    for images, name in ((picture_shards.location.path, None), (pictures, "pictures")):
        result = evaluate(
            str(bundle),
            str(images),
            compute=COMPUTE,
            settings=EvaluateSettings(store=str(known.location), name=name),
        )
        facts = evaluation_json(result)["agreement"]
        assert (facts["images"], facts["not_in_store"]) == (45, 1)
        assert (facts["top1"]["correct"], facts["top1"]["total"]) == (same, 45)
        assert facts["kl_nats"]["mean"] == pytest.approx(kl_N.mean(), rel=1e-4)
        assert facts["kl_nats"]["stderr"] == pytest.approx(kl_N.std(ddof=1) / math.sqrt(45), rel=1e-4)


def test_a_student_that_is_its_teacher_agrees_wholly(
    bundle, pictures, picture_shards, plain, vectors, make_store, tmp_path
):
    draft = make_store(picture_shards, tmp_path / "draft", widths={"logits": 8}, vectors=vectors)
    rows, student_NC = known_view_logits(draft, plain, pictures)
    logits = np.zeros((48, 3, 8), np.float32)
    logits[rows, 0] = student_NC
    known = make_store(
        picture_shards, tmp_path / "s", widths={"logits": 8}, vectors=vectors, targets={"logits": logits}
    )
    shards = str(picture_shards.location)
    facts = evaluation_json(
        evaluate(str(bundle), shards, compute=COMPUTE, settings=EvaluateSettings(store=str(known.location)))
    )
    assert facts["agreement"]["top1"]["rate"] == 1.0
    assert facts["agreement"]["kl_nats"]["mean"] == pytest.approx(0, abs=1e-9)
    text = evaluation_text(facts)
    assert "Agreement with the stored teacher, on the store's first view" in text


def test_a_centre_store_of_the_students_own_view_costs_no_second_pass(
    bundle, picture_shards, vectors, make_store, tmp_path, expected
):
    views = load_student(str(bundle)).preprocess.center_view()
    logits_NC, _ = expected
    known = make_store(picture_shards, tmp_path / "draft", widths={"logits": 8}, vectors=vectors, views=views)
    logits = np.zeros((48, 1, 8), np.float32)
    logits[np.flatnonzero(known.valid), 0] = logits_NC
    known = make_store(
        picture_shards,
        tmp_path / "s",
        widths={"logits": 8},
        vectors=vectors,
        views=views,
        targets={"logits": logits},
    )
    shards = str(picture_shards.location)
    facts = evaluation_json(
        evaluate(str(bundle), shards, compute=COMPUTE, settings=EvaluateSettings(store=str(known.location)))
    )
    assert facts["agreement"]["kl_nats"]["mean"] == pytest.approx(0, abs=1e-9)


def test_a_teacher_of_other_classes_is_refused(bundle, picture_shards, vectors, make_store, tmp_path):
    shards = picture_shards.location
    for names, field, expected, found in (
        (("blue jay", "Otter", *NAMES[2:]), "class_names[1]", "'otter'", "'Otter'"),
        ((NAMES[1], NAMES[0], *NAMES[2:]), "class_names[0]", "'blue jay'", "'otter'"),
        (NAMES[:-1], "number of classes", "8", "7"),
    ):
        count = len(names)
        theirs = ClassVectors(
            names=names, vectors_CD=vectors.vectors_CD[:count], bias_C=None, logit_scale=1.0, normalized=True
        )
        store = make_store(
            picture_shards, tmp_path / f"s{count}{expected}", widths={"logits": count}, vectors=theirs
        ).location
        assert error_of(MismatchError, bundle, shards, store=str(store)) == (
            "the store's teacher knows other classes than the student, or in another order: "
            f"{store}: field '{field}': expected {expected} (the student), found {found} (the store). "
            "Next: compare with the store that the student was distilled from"
        )


def test_agreement_leaves_out_other_pictures_of_known_names(
    bundle, pictures, picture_shards, vectors, make_store, tmp_path
):
    known = make_store(picture_shards, tmp_path / "s", widths={"logits": 8}, vectors=vectors)
    whole = evaluate(
        str(bundle),
        str(pictures),
        compute=COMPUTE,
        settings=EvaluateSettings(store=str(known.location), name="pictures"),
    )
    mixed = tmp_path / "pictures"
    shutil.copytree(pictures, mixed)
    files = usable_files(mixed)
    for i in (3, 10, 30):
        Image.open(files[i]).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(files[i])
    result = evaluate(
        str(bundle),
        str(mixed),
        compute=COMPUTE,
        settings=EvaluateSettings(store=str(known.location), batch_size=7),
    )
    assert (whole.agreement.top1.total, whole.other_pictures, whole.notes[1:]) == (46, 0, [])
    assert (result.agreement.top1.total, result.other_pictures, result.not_in_store) == (43, 3, 0)
    assert result.accuracy.top1.total == 46
    assert result.notes[1:] == [
        "other pictures than the store's under its names, left out of the agreement: "
        f"3 ({files[3].relative_to(mixed)} is the first)"
    ]
    facts = evaluation_json(result)
    assert facts["agreement"]["other_pictures"] == 3
    assert "  other pictures than the store's: 3 images" in evaluation_text(facts)


def test_a_store_whose_views_have_other_pixels_here_is_refused(
    bundle, pictures, picture_shards, vectors, make_store, tmp_path, monkeypatch
):
    spec = ViewSpec(kind="random_resized_crop", count=2)
    sample = PixelSample.take(picture_shards, spec, 32)
    shutil.copytree(picture_shards.location.path, tmp_path / "shards")
    known = make_store(
        picture_shards,
        tmp_path / "s",
        widths={"logits": 8},
        vectors=vectors,
        views=spec,
        description={"pixels": sample.to_json(), "shards": str(tmp_path / "shards")},
    )
    arguments = ("evaluate", bundle, picture_shards.location, "--store", known.location, "--threads", "1")
    code, _, stderr = run(*arguments)
    assert (code, "pixels" in stderr) == (0, False)
    monkeypatch.setitem(INTERPOLATIONS, "bicubic", Image.Resampling.HAMMING)
    code, _, stderr = run(*arguments)
    wrong = f"this machine renders other pixels than the teacher saw: {known.location}, row 0, view 0"
    assert code == 1
    several = "(and 127 more of 128 views)"
    assert stderr.startswith(f"Error: {wrong} {several}: expected {sample.digests[0][0]}, found ")
    assert stderr.endswith(
        " (with the same versions of all libraries) [pixels-differ-here]. "
        "Next: run `teachonce cache` again into another store, or add --accept-other-pixels\n"
    )
    code, stdout, stderr = run(*arguments, "--accept-other-pixels")
    assert code == 0
    assert f"evaluate: accepted: {wrong} {several}, with the same versions" in stderr
    assert "Agreement with the stored teacher" in stdout
    (tmp_path / "shards" / "000000.tar").write_bytes(b"")  # not the tars that are measured
    code, _, stderr = run("evaluate", bundle, pictures, "--name", "pictures", *arguments[3:])
    unchecked = "evaluate: whether this machine renders the store's views alike was not checked: "
    assert code == 0
    assert f"{unchecked}a shard's file was cut or replaced: {tmp_path / 'shards' / '000000.tar'}" in stderr
    (tmp_path / "shards" / "corpus.json").unlink()
    code, _, stderr = run(*arguments)
    assert (code, stderr[: len(wrong) + 7]) == (1, f"Error: {wrong}")  # what is measured was looked at


def test_nothing_to_measure_is_an_error(bundle, pictures, picture_shards, vectors, make_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert error_of(InputError, bundle, "empty") == (
        "no images here: empty. Next: give a folder of class folders, a tar, a list or shards"
    )
    assert error_of(InputError, bundle, "none") == "no such corpus: none. Next: check the path"
    Path("set/unicorn").mkdir(parents=True)
    Path("set/unicorn/1.jpg").write_bytes(usable_files(pictures)[0].read_bytes())
    assert error_of(InputError, bundle, "set") == (
        "no label is the name of a class, so there is nothing to measure: set: "
        "expected names like 'blue jay', found 'unicorn'. Next: name the folders as the classes are named, "
        "or compare with the teacher by --store"
    )
    Path("bad/otter").mkdir(parents=True)
    Path("bad/otter/1.jpg").write_bytes(b"no image")
    assert error_of(InputError, bundle, "bad") == (
        "none of the images can be used: bad: found otter/1.jpg: not an image that Pillow reads"
    )
    known = make_store(picture_shards, tmp_path / "s", widths={"logits": 8}, vectors=vectors)
    assert error_of(InputError, bundle, pictures, store=str(known.location), name="other") == (
        "none of the images has a key in the store: s: expected corpus 'pictures', found corpus 'other'. "
        "Next: pass the shards that were cached, or --name with their corpus's name, or leave out --store"
    )
    assert error_of(InputError, bundle, picture_shards.location, name="other") == (
        "shards carry their own corpus name: --name: found other. Next: leave out --name"
    )


def test_a_student_that_says_nan_is_never_right(bundle, pictures, tmp_path, revouch_bundle):
    import shutil

    from safetensors.numpy import load_file, save_file

    shutil.copytree(bundle, tmp_path / "b")
    weights = load_file(tmp_path / "b" / "class_vectors.safetensors")
    weights["vectors"] = weights["vectors"] * np.float32("nan")
    save_file(weights, tmp_path / "b" / "class_vectors.safetensors")
    revouch_bundle(tmp_path / "b")
    assert error_of(DamagedError, tmp_path / "b", pictures) == (
        "the student gives NaN or infinity: logits. Next: try --precision fp32, or distill it again"
    )


def test_the_commands_print_tables_or_json(bundle, pictures):
    code, out, err = run("evaluate", bundle, pictures, "--base-classes", "red fox,otter", "--threads", 1)
    assert code == 0
    assert "harmonic mean of base and novel" in out
    assert "most taken for" in out
    assert "Unusable images: 2" in out
    assert "2 images could not be used." in err
    code, out, _ = run("evaluate", bundle, pictures, "--json", "--precision", "bf16")
    facts = json.loads(out)
    assert code == 0
    assert facts["bundle"] == str(bundle)
    assert facts["accuracy"]["top1"]["total"] == 46
    code, out, err = run("evaluate", pictures, pictures)
    assert (code, out) == (1, "")
    assert err.startswith(
        f"Error: no student bundle here: {pictures}: expected a student bundle, found a folder of images [bundle-missing]. "
    )


# predict


def test_predictions_are_those_of_plain_arithmetic(bundle, pictures, expected):
    files = usable_files(pictures)[:40]
    code, out, err = run("predict", bundle, *files, "--json", "--top", 3)
    assert (code, err) == (0, "")
    logits_NC = expected[0][:40].astype(np.float64)
    powers = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
    probabilities = powers / powers.sum(1, keepdims=True)
    said = json.loads(out)
    assert [entry["image"] for entry in said] == [str(f) for f in files]
    for entry, row in zip(said, probabilities, strict=True):
        best = np.argsort(-row)[:3]
        assert [t["class"] for t in entry["top"]] == [NAMES[i] for i in best]
        assert [t["probability"] for t in entry["top"]] == pytest.approx(row[best].tolist(), rel=1e-3)


def test_an_image_of_eight_million_by_one_pixels_is_predicted(bundle, tmp_path):
    """Resized whole, it would have 256 million pixels, or as many times more as its student's side is larger."""
    Image.new("L", (1, 8_000_000), 77).save(tmp_path / "thin.png")
    Image.new("RGB", (40, 40), (77, 77, 77)).save(tmp_path / "square.png")
    thin, square = predict(
        str(bundle), [str(tmp_path / f"{n}.png") for n in ("thin", "square")], top=2, compute=COMPUTE
    )
    assert thin.reason == ""
    assert dict(thin.top) == pytest.approx(dict(square.top), rel=1e-4)


def test_a_bad_image_is_named_and_the_others_are_done(bundle, pictures, tmp_path):
    good = usable_files(pictures)[0]
    bad = pictures / "red fox" / "07b.jpg"
    os.mkfifo(tmp_path / "pipe.jpg")
    code, out, err = run(
        "predict",
        bundle,
        bad,
        good,
        tmp_path / "none.jpg",
        tmp_path,
        tmp_path / "pipe.jpg",
        "/dev/zero",
        "pipe:cat x",
        "--top",
        2,
    )
    assert code == 1
    assert err.splitlines() == [
        f"{bad}: empty file",
        f"{tmp_path}/none.jpg: no such file",
        f"{tmp_path}: a folder, not an image; measure folders with `teachonce evaluate`",
        f"{tmp_path}/pipe.jpg: a pipe, not a file",
        "/dev/zero: a device, not a file",
        "pipe:cat x: pipe: runs a command from data and is refused: pipe:cat x",
    ]
    lines = out.splitlines()
    assert lines[0] == str(good)
    assert len(lines) == 3
    code, out, _ = run("predict", bundle, bad, good, "--json")
    assert code == 1
    assert json.loads(out)[0] == {"image": str(bad), "error": "empty file"}
    assert len(json.loads(out)[1]["top"]) == 5


def test_stdin_is_no_image(bundle):
    code, out, err = run("predict", bundle, "-")
    assert (code, out) == (1, "")
    assert err == "Error: images cannot come from stdin: - [stdin-refused]. Next: save it to a file and give its path\n"


@pytest.mark.slow
def test_no_teacher_module_is_imported(python, bundle, pictures, picture_shards, vectors, make_store, tmp_path):
    make_store(picture_shards, tmp_path / "s", widths={"logits": 8}, vectors=vectors)
    script = (
        "import sys\n"
        "from teachonce.cli import main\n"
        "for arguments in (\n"
        f"    ['evaluate', *{[str(bundle), str(picture_shards.location.path)]}, '--store', '{tmp_path}/s'],\n"
        f"    ['predict', *{[str(bundle), str(usable_files(pictures)[0])]}],\n"
        "):\n"
        "    main(arguments, standalone_mode=False)\n"
        "loaded = [name for name in sys.modules if name.startswith('teachonce.stages.teachers')]\n"
        "assert not loaded, loaded\n"
        "assert 'ray' not in sys.modules and 'teachonce.stages.cache' not in sys.modules\n"
    )
    done = python.run("-c", script)
    assert done.returncode == 0, done.stderr
    assert "Agreement with the stored teacher" in done.stdout


# decoding ahead


@pytest.fixture
def no_set_is_small(monkeypatch):
    """Processes decode whatever the number of images."""
    monkeypatch.setattr(picture_pool, "FEW", 1)


@pytest.mark.parametrize("images", ["folder", "tar", "list", "shards", "store"])
def test_where_images_are_decoded_decides_nothing(
    images, bundle, pictures, picture_shards, vectors, make_store, tmp_path, no_set_is_small
):
    place, options = pictures, ["--batch-size", 7, "--base-classes", "@half"]
    if images == "tar":
        place = tmp_path / "p.tar"
        with tarfile.open(place, "w") as tar:
            tar.add(pictures, arcname=".")
    elif images == "list":
        place = tmp_path / "list.txt"
        files = [*(p for p in pictures.rglob("*.*") if p.is_file()), pictures / "red fox" / "gone.jpg"]
        place.write_text("".join(f"{p}\t{p.parent.name}\n" for p in files))
    elif images == "shards":
        place = picture_shards.location.path
    elif images == "store":
        known = make_store(picture_shards, tmp_path / "s", widths={"logits": 8}, vectors=vectors, also_invalid=(5,))
        options += ["--store", known.location, "--name", "pictures"]
    here, there = (run("evaluate", bundle, place, "--json", *options, "--decode-workers", n) for n in (0, 2))
    assert here[:2] == there[:2]
    said, also_said = ([line for line in one[2].splitlines() if "/49 img" not in line] for one in (here, there))
    assert said == also_said  # how often progress is told is the machine's affair
    facts = json.loads(here[1])
    assert facts["images"]["usable"] == 46
    assert images != "store" or facts["agreement"]["images"] == 45


def test_predictions_are_the_same_wherever_images_are_decoded(bundle, pictures, no_set_is_small):
    files = [*sorted(pictures.rglob("*.*")), pictures / "gone.jpg", pictures, "ftp://127.0.0.1/x.jpg"]
    here, there = (run("predict", bundle, *files, "--json", "--decode-workers", n) for n in (0, 2))
    assert here == there
    assert here[0] == 1
    assert sum("error" in entry for entry in json.loads(here[1])) == 5


def test_few_images_start_no_processes(bundle, pictures, picture_shards, monkeypatch):
    compute = Compute(device="cpu", precision="fp32", threads=1, decode_workers=1)
    pools = [picture_pool.picture_pool(compute, count) for count in (63, 64)]
    assert [type(pool) for pool in pools] == [Threads, Processes]
    for pool in pools:
        pool.close()
    monkeypatch.setattr(Compute, "pool", lambda *given: pytest.fail("processes were started"))
    assert [shows_many(str(pictures), count) for count in (48, 49)] == [True, False]
    assert [shows_many(str(picture_shards.location.path), count) for count in (48, 49)] == [True, False]
    assert not shows_many("nowhere", 1)
    assert evaluate(str(bundle), str(pictures), compute=compute).usable == 46
    assert len(list(predict(str(bundle), [str(f) for f in usable_files(pictures)], top=1, compute=compute))) == 46


def test_a_killed_process_is_an_error(bundle, pictures, no_set_is_small, monkeypatch):
    """It has at most half of the images when it dies, which it does while the first one is in the student."""
    through = Forward.through

    def kill_first(self, batches):
        for i, outputs in enumerate(through(self, batches)):
            if i == 0:
                for process in _descendants(os.getpid()):
                    os.kill(process, signal.SIGKILL)
            yield outputs

    monkeypatch.setattr(Forward, "through", kill_first)
    code, out, err = run("evaluate", bundle, pictures, "--json", "--batch-size", 1, "--decode-workers", 1)
    assert (code, out) == (1, "")
    assert "Error: a process that decodes images died" in err


def _descendants(parent: int) -> list[int]:
    """Processes that were started by those that this one has started."""
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            found.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    return [last for child in found.get(parent, []) for last in found.get(child, [])]


def test_a_device_without_memory_for_a_batch_is_told_with_what_fits(bundle, pictures, monkeypatch):
    """With the option that decides the batch's size, where there is one."""
    forward = Student.forward

    def of_six_at_most(self, images_NCHW):
        if len(images_NCHW) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, images_NCHW)

    monkeypatch.setattr(Student, "forward", of_six_at_most)
    assert run("evaluate", bundle, pictures, "--batch-size", 12)[2].startswith(
        "Error: the device has too little memory for such a batch: --batch-size 12: expected at most 6, found 12"
        " [device-out-of-memory]. Next: use --batch-size 6"
    )
    assert run("predict", bundle, *usable_files(pictures)[:12])[2].startswith(
        "Error: the device has too little memory for such a batch: a batch of 12: expected at most 6, found 12"
        " [device-out-of-memory]. Next: use --device cpu"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_measures_the_same_as_the_processor(bundle, pictures):
    settings = EvaluateSettings(batch_size=7)
    gpu = Compute(device="cuda", precision="fp32", threads=1, decode_workers=2)
    here, there = (evaluate(str(bundle), str(pictures), compute=c, settings=settings) for c in (COMPUTE, gpu))
    assert there.unusable == here.unusable
    assert abs(there.accuracy.top1.correct - here.accuracy.top1.correct) <= 1
    files = [str(f) for f in usable_files(pictures)]
    pairs = zip(*(predict(str(bundle), files, top=1, compute=c) for c in (COMPUTE, gpu)), strict=True)
    assert all(a.top[0][1] == pytest.approx(b.top[0][1], abs=1e-3) for a, b in pairs)
