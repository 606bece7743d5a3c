"""Training from the store is training with the teacher in the loop: `benchmarks/` holds the latter, here is the proof."""

from __future__ import annotations

import importlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from teachonce.stages.decoding.threads import Threads
from teachonce.stages.measures.metrics import log_softmax
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.recipes.registry import recipe_named
from teachonce.stages.teachers.open_clip import OpenClipTeacher
from teachonce.stages.training.build import build_student
from teachonce.storage_schemas.encodings import ENCODINGS
from teachonce.storage_schemas.errors import MismatchError

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

IMAGES, EPOCHS, BATCH = 120, 4, 20
STEPS = EPOCHS * IMAGES // BATCH


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The benchmarks' modules, which are no package and are not installed."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.syspath_prepend(BENCHMARKS / "equivalence")
        names = ("demo_task", "run", "online", "proof", "trial", "cifar10_images")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def task(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The demo's images and models; as many views as epochs, stored in fp32 and by default."""
    folder = tmp_path_factory.mktemp("task")
    made = bench.demo_task.demo_task(folder, num_images=IMAGES, num_held_out=0, views=EPOCHS)
    made = made.adjusted(batch_size=BATCH, from_scratch=("kd",))
    for encoding in ("fp32", "fp16"):
        made.make_store(encoding)
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images in every batch that a teacher is asked about."""
    batches: list[int] = []
    original = OpenClipTeacher.embed

    def embed(self: OpenClipTeacher, images_NCHW: torch.Tensor) -> torch.Tensor:
        batches.append(len(images_NCHW))
        return original(self, images_NCHW)

    monkeypatch.setattr(OpenClipTeacher, "embed", embed)
    return batches


@pytest.mark.parametrize("recipe", ["promptkd", "kd"])
def test_cached_equals_online_step_by_step(
    recipe: str, bench: Any, task: Any, tmp_path: Path, asked: list[int]
) -> None:
    ways = ("cached", "last bit", "wrong view")
    proof = bench.proof.prove(task, recipe, epochs=EPOCHS, seed=3, scratch=tmp_path, ways=ways)
    assert proof.steps == STEPS
    # One of these trainings asks the teacher, in every step; then the targets of one epoch are compared.
    assert asked == [BATCH] * (STEPS + STEPS // EPOCHS)
    assert proof.target_difference < 1e-4
    # The promise: 1e-5 relative; kept even where batches of another size move the last bits of what the teacher says.
    for way in ("cached", "last bit"):
        assert proof.loss_difference(way) <= 1e-5, way
        assert proof.weight_difference(way) <= 1e-5, way
    # The same figures notice a view that is off by one.
    assert proof.loss_difference("wrong view") > 0.05
    assert proof.weight_difference("wrong view") > 0.005


def test_the_default_encoding_keeps_the_budget_that_the_store_declares(bench: Any, task: Any) -> None:
    def stored(encoding: str) -> np.ndarray:
        stage = bench.trial.plan(
            task, "kd", epochs=EPOCHS, views=EPOCHS, seed=0, out=task.folder / "out", encoding=encoding
        )
        return bench.proof.stored_logits(stage).flatten(0, 1).numpy()

    log_p, log_q = log_softmax(stored("fp32")), log_softmax(stored("fp16"))
    kl_N = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    about = json.loads((task.store("fp16") / "zarr.json").read_text())["attributes"]["cache"]["spec"]
    assert about["encoding"] == "fp16"
    assert about["kl_budget"] == ENCODINGS["fp16"].kl_budget
    assert len(kl_N) == IMAGES * EPOCHS
    assert 0 < kl_N.max() <= about["kl_budget"]


def test_a_teacher_of_another_size_sees_the_same_boxes(bench: Any, task: Any, tmp_path: Path) -> None:
    student = StudentConfig(model="timm:test_resnet", pretrained="random", size=24)
    small = replace(task, trainings={"kd": replace(task.trainings["kd"], student=student)})
    stage = bench.trial.plan(small, "kd", epochs=EPOCHS, views=EPOCHS, seed=1, out=tmp_path, encoding="fp32")
    online = bench.online.OnlineStage.like(
        stage, out=stage.out, teacher=task.teacher, compute=Compute(device="cpu", precision="fp32", threads=1)
    )
    built = build_student(student, recipe_named("kd"), stage.settings, stage.vectors, seed=1)
    stored_NVC = bench.proof.stored_logits(stage)
    stream = online.open_pairs(online.pairs, built, Threads(0))
    batches = list(stream.batches(2, first_sample=BATCH))
    stream.close()
    assert len(batches) == IMAGES // BATCH - 1
    for batch in batches:
        assert batch.images_NCHW.shape == (BATCH, 3, 24, 24)
        logits_NC = stage.vectors.logits(batch.targets["embedding"].numpy())
        np.testing.assert_allclose(logits_NC, stored_NVC[batch.rows_N, 2], rtol=1e-4, atol=1e-4)


def test_the_table_resumes_and_refuses_other_settings(bench: Any, tmp_path: Path) -> None:
    options = [
        "table",
        "--out",
        str(tmp_path),
        "--corpus",
        "demo",
        "--recipe",
        "kd",
        "--views",
        "2",
        "--views",
        "1",
        "--epochs",
        "2",
        "--fp32",
        "--images",
        "100",
        "--held-out",
        "80",
        "--seeds",
        "2",
    ]

    def run(*more: str) -> tuple[str, str]:
        result = CliRunner().invoke(bench.run.main, [*options, *more], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout, result.stderr

    first, told = run()
    lines = [json.loads(line) for line in (tmp_path / "demo/trials.jsonl").read_text().splitlines()]
    names = [f"demo-kd-{how}-seed{seed}" for seed in (0, 1) for how in ("online", "k2", "k1", "k2-fp32")]
    assert [line["name"] for line in lines] == names
    assert all(name in told for name in names)
    # As many views as epochs: the same student but for the rounding of fp16.
    online, twin, one_view, exact = lines[:4]
    assert exact["loss"] == pytest.approx(online["loss"], rel=1e-5)
    assert twin["loss"] == pytest.approx(online["loss"], rel=1e-2)
    assert abs(one_view["loss"] / online["loss"] - 1) > abs(twin["loss"] / online["loss"] - 1)
    shown = [line.split("|")[1].strip() for line in first.splitlines() if line.startswith("|")]
    assert shown == ["views", "---", "online", "2", "1", "2, fp32", "online, other seed"]
    # What is not there is done, and nothing else.
    book = tmp_path / "demo/trials.jsonl"
    book.write_text("".join(book.read_text().splitlines(keepends=True)[:-1]))
    again, told = run()
    assert [word for word in told.split() if word.startswith("demo-kd")] == [names[-1] + ":"]
    figures = [line for line in again.splitlines() if line.startswith("| online |")]
    assert figures == [line for line in first.splitlines() if line.startswith("| online |")]
    with pytest.raises(
        MismatchError,
        match=r"^trials with other settings: .*field 'epochs': expected 3 .this command., found 2 .the folder.",
    ):
        CliRunner().invoke(bench.run.main, [*options, "--epochs", "3"], catch_exceptions=False)


def test_no_cifar10_image_serves_two_purposes(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10 = bench.cifar10_images
    rows = [row for part in cifar10.PARTS.values() for row in part]
    assert len(rows) == len(set(rows))
    monkeypatch.setattr(cifar10, "PARTS", {"images": range(0, 2), "head": range(2, 3)})
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for label, name in reversed(list(enumerate(cifar10.CLASSES))):
            for i in (2, 0, 1):
                buffer = io.BytesIO()
                Image.new("RGB", (32, 32), (20 * label, 80 * i, 0)).save(buffer, "PNG")
                member = tarfile.TarInfo(f"{name}/{i:04d}.jpg")
                member.size = buffer.tell()
                tar.addfile(member, io.BytesIO(buffer.getvalue()))
    part = cifar10.labelled(tmp_path, "head")
    assert part.labels_N.tolist() == list(range(10))
    assert part.images_NHWC[:, 0, 0].tolist() == [[20 * label, 160, 0] for label in range(10)]
    cifar10.write_images(tmp_path, tmp_path / "images", per_class=2)
    files = sorted((tmp_path / "images").iterdir())
    assert [path.name for path in files] == [f"{i:05d}.jpg" for i in range(20)]
    colours = [Image.open(path).getpixel((0, 0)) for path in files]
    assert colours == [(20 * label, 80 * i, 0) for i in range(2) for label in range(10)]
