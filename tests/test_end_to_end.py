"""The whole way through the command line, with a teacher that is gone from the disk once it has spoken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import webdataset
import xarray
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.stages import demo

# What webdataset's reader leaves open is not ours to close.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 40, 200)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Squares of three colours, in a folder each; one file is broken."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    for i in range(48):
        name = list(COLOURS)[i % 3]
        noise = rng.normal(0, 25, (44, 40, 3))
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray((COLOURS[name] + noise).clip(0, 255).astype(np.uint8)).save(folder / name / f"{i:02d}.png")
    (folder / "red" / "zz.png").write_bytes(b"not an image")
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "student"),
    [
        ("promptkd", ("--student", "{student}", "--optimizer", "adamw", "--lr", 0.01, "--weight-decay", 0)),
        ("kd", ("--student", "timm:test_vit")),
    ],
)
def test_the_whole_way(recipe, student, photos, tmp_path):
    weights = Path(demo.__file__).parent
    teacher = tmp_path / "teacher"
    shutil.copytree(weights / "teacher", teacher)
    shards, store, bundle = tmp_path / "shards", tmp_path / "targets.zarr", tmp_path / "student"
    (tmp_path / "classes.txt").write_text("red seven\ngreen seven\nblue seven\n")
    serial = ("--executor", "serial")
    run("shard", photos, "--out", shards, "--shard-size", 20, *serial)
    run("vectors", "--teacher", f"local-dir:{teacher}", "--classes", tmp_path / "classes.txt", "--out", store)
    run(
        "cache",
        shards,
        "--teacher",
        f"local-dir:{teacher}",
        "--views",
        2,
        "--view-scale",
        "0.5,1",
        "--out",
        store,
        *serial,
    )
    shutil.rmtree(teacher)

    student = [str(a).format(student=f"local-dir:{weights / 'student'}") for a in student]
    run(
        "distill",
        shards,
        store,
        *student,
        "--recipe",
        recipe,
        "--epochs",
        8,
        "--batch-size",
        8,
        "--threads",
        1,
        "--decode-workers",
        0,
        "--out",
        bundle,
    )
    measured = json.loads(run("evaluate", bundle, shards, "--store", store, "--json"))
    assert measured["agreement"]["top1"]["rate"] > 0.8, measured["agreement"]
    predicted = json.loads(run("predict", bundle, photos / "blue" / "02.png", "--json"))
    assert predicted[0]["top"][0]["class"] == "blue seven"

    status = json.loads(run("status", store, "--json"))
    assert status["state"] == "complete"
    inspected = json.loads(run("inspect", store, "--json"))
    assert (inspected["coverage"]["valid"], inspected["coverage"]["invalid"]) == (48, 1)

    data = xarray.open_zarr(str(store), consolidated=False)
    assert data.sizes["sample"] == 49
    samples = list(webdataset.WebDataset(sorted(map(str, shards.glob("*.tar"))), shardshuffle=False).decode("pil"))
    assert len(samples) == 48
    assert set(samples[0]) >= {"__key__", "png", "json"}
    assert safetensors.numpy.load_file(bundle / "class_vectors.safetensors")["vectors"].shape[0] == 3
