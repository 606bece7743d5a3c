"""The scripts of examples/ run as a user runs them, on shards, a store and a student that are there."""

from __future__ import annotations

import io
import json
import re
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from teachonce import load_student
from teachonce.stages.pairs.stream import TargetStream
from teachonce.storage_schemas.class_vectors import ClassVectors

CHECKOUT = Path(__file__).parent.parent
EXAMPLES = CHECKOUT / "examples"
STUDENT = CHECKOUT / "tests" / "data" / "0.1.0" / "student"


@pytest.fixture
def run(python):
    """What a script prints, with warnings of its own as errors."""

    def one(script: str, *args: object, cwd: Path) -> str:
        done = python.run("-W", "error::DeprecationWarning:__main__", EXAMPLES / script, *args, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return one


@pytest.fixture
def serve(python):
    """Starts a script that serves; the address that it prints."""
    started = []

    def one(script: str, *args: object) -> str:
        started.append(python.start(EXAMPLES / script, *args))
        while not (found := re.search(r"http://\S+", started[-1].stdout)):
            assert started[-1].poll() is None, started[-1].stderr
            time.sleep(0.02)
        return found[0]

    yield one
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def pair(stage_inputs, tmp_path_factory):
    """Shards of 20 pictures and an empty file, and a store of seven classes and two views."""
    folder = tmp_path_factory.mktemp("pair")
    for index in range(20):
        stage_inputs.draw_picture(folder / "pictures" / f"{index}.png", index)
    (folder / "pictures" / "empty.png").write_bytes(b"")
    shards = stage_inputs.shard_folder(folder / "pictures", folder / "shards", shard_size=8)
    vectors = ClassVectors(
        names=tuple("abcdefg"),
        vectors_CD=np.eye(7, 4, dtype=np.float32),
        bias_C=None,
        logit_scale=1.0,
        normalized=True,
    )
    return stage_inputs.write_known_store(shards, folder / "store", num_views=2, vectors=vectors)


def test_every_example_is_short_and_tested():
    scripts = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert scripts == sorted(re.findall(r'(?:run|serve)\(\s*"(\w+\.py)"', Path(__file__).read_text()))
    assert [s for s in scripts if len((EXAMPLES / s).read_text().splitlines()) > 60] == []


def test_a_training_loop_of_your_own(pair, run, tmp_path):
    printed = run(
        "own_training_loop.py",
        pair.shards.location,
        pair.location,
        "--model",
        "test_byobnet",
        "--size",
        32,
        "--batch-size",
        5,
        "--epochs",
        9,
        cwd=tmp_path,
    )
    losses = [float(line.split()[-1]) for line in printed.splitlines()]
    assert len(losses) == 9
    assert losses[8] < 0.9 * losses[0]  # the same one of the two views; about 0.7 with any seed
    weights = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert weights["head.fc.weight"].shape[0] == 7


def test_targets_in_a_webdataset_pipeline(pair, run, tmp_path):
    printed = run(
        "webdataset_pipeline.py",
        pair.shards.location,
        pair.location,
        "--views",
        2,
        "--size",
        8,
        "--batch-size",
        6,
        cwd=tmp_path,
    )
    lines = [re.fullmatch(r"view (\d): (\d+) samples, cross-entropy ([\d.]+)", s) for s in printed.splitlines()]
    assert [(m[1], m[2]) for m in lines if m] == [("0", "20"), ("1", "20")]
    with TargetStream(pair.shards, pair.location, image_size=8, batch_size=20, targets=("logits",)) as stream:
        logits_NC = next(stream.batches(0)).targets["logits"]
    # Near the teacher's own entropy plus the linear model's error, never below the entropy.
    entropy = -(logits_NC.softmax(1) * logits_NC.log_softmax(1)).sum(1).mean().item()
    assert all(m and float(m[3]) > entropy for m in lines)


def test_classifying_images(run, tmp_path):
    for index in range(3):
        picture = np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    printed = run("classify.py", STUDENT, "0.png", "1.png", "2.png", "--top", 2, "--batch-size", 2, cwd=tmp_path)
    lines = [re.fullmatch(r"(\d)\.png: .+ (0\.\d{3}), .+ (0\.\d{3})", s) for s in printed.splitlines()]
    assert [m and m[1] for m in lines] == ["0", "1", "2"]
    assert all(m and float(m[2]) >= float(m[3]) for m in lines)


def test_the_images_that_the_teacher_is_least_certain_of(pair, run, tmp_path):
    printed = run("least_certain.py", pair.location, "--count", 4, "--pictures", tmp_path / "seen", cwd=tmp_path)
    logits = pair.targets["logits"].astype(np.float64)
    share = np.exp(logits - logits.max(-1, keepdims=True))
    mean_NC = (share / share.sum(-1, keepdims=True)).mean(1)
    first_N = np.where(pair.valid, mean_NC.max(1), np.inf)
    entries = list(pair.shards.manifest())
    order = np.argsort(first_N)[:4].tolist()
    expected = [f"{entries[r].path}: {'abcdefg'[mean_NC[r].argmax()]} {first_N[r]:.3f}" for r in order]
    assert printed.splitlines() == expected
    assert sorted(p.name for p in (tmp_path / "seen").iterdir()) == sorted(f"{r}.webp" for r in order)


def test_a_service(serve):
    address, student = serve("serve.py", STUDENT, "--port", 0), load_student(str(STUDENT))

    def ask(body: bytes, top: str = "2") -> tuple[int, dict]:
        try:
            with urllib.request.urlopen(f"{address}/?top={top}", body, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    pictures = []
    for index in range(6):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(ask, pictures))
    for picture, (status, found) in zip(pictures, answers, strict=True):
        expected = student.predict(picture).top(2)
        assert (status, [c["class"] for c in found["top"]]) == (200, [name for name, _ in expected])
        np.testing.assert_allclose([c["probability"] for c in found["top"]], [p for _, p in expected], atol=1e-6)
    assert ask(pictures[0][:100]) == (400, {"error": "truncated image"})
    assert ask(b"/etc/hostname") == (400, {"error": "not an image that Pillow reads"})
    assert ask(pictures[0], top="x")[0] == 400
