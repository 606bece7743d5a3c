"""Stores with hostile names, their pages, and the browser that opens them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from teachonce.storage_schemas.class_vectors import ClassVectors

#: What would run, or end its element, if a name were not escaped.
EVIL = "</script><img src=x onerror=\"document.title='owned'\">&'\"`"
EVIL_FILE = "<img src=x onerror=document.title='owned'>&'\"`"
CLASSES = ("red fox", EVIL, "house cat", "wasp\x1b[31m", "newt", "otter", "an owl whose name goes on for ever and ever")

VIEWS = {
    "kind": "random_resized_crop",
    "count": 3,
    "interpolation": "bicubic",
    "seed": 5,
    "scale": [0.08, 1.0],
    "ratio": [0.75, 4 / 3],
    "flip": 0.5,
}


def describe(shards: Any, targets: list[str]) -> dict[str, Any]:
    """What `cache` records in a store, in its words."""
    preprocess = {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "crop_pct": 1.0}
    compute = {"device": "cpu", "precision": "fp32", "threads": 2, "batch_size": 8}
    teacher = {"family": "open_clip", "model": EVIL, "weights_digest": "ab" * 16, "embed_dim": 4, "normalized": True}
    fingerprint = {
        "schema_version": 1,
        "corpus_id": shards.corpus.corpus_id,
        "teacher": {"model": "tiny", "weights": "ab" * 16, "preprocess": preprocess},
        "views": VIEWS,
        "targets": targets,
        "encoding": "fp32",
        "compute": compute,
    }
    return {
        "fingerprint": fingerprint,
        "teacher": teacher | {"preprocess": preprocess},
        "views": VIEWS,
        "shards": str(shards.location.path),
    }


@pytest.fixture(scope="session")
def evil_store(stage_inputs, tmp_path_factory) -> Any:
    """48 pictures with hostile paths, labels and class names; three views, logits and embeddings in fp32."""
    folder = tmp_path_factory.mktemp("evil") / "pictures"
    rng = np.random.default_rng(7)
    for index in range(48):
        label = ("fox", "<b>cat</b>", "owl & 'co'")[index % 3]
        path = folder / label / (f"{index:02d}{EVIL_FILE}.png" if index % 4 == 0 else f"{index:02d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC).save(path)
    shards = stage_inputs.shard_folder(folder, folder.parent / "shards", name="evil")
    vectors_CD = np.random.default_rng(1).normal(size=(len(CLASSES), 4)).astype(np.float32)
    vectors = ClassVectors(names=CLASSES, vectors_CD=vectors_CD, bias_C=None, logit_scale=3.0, normalized=True)
    targets = ["embedding", "logits"]
    return stage_inputs.write_known_store(
        shards,
        folder.parent / "targets.zarr",
        widths={"embedding": 4, "logits": len(CLASSES)},
        vectors=vectors,
        also_invalid=(5,),
        description=describe(shards, targets),
    )


@pytest.fixture(scope="session")
def describe_store() -> Callable[[Any, list[str]], dict[str, Any]]:
    """`describe_store(shards, targets)`: see `describe`."""
    return describe


@dataclass(frozen=True)
class Browser:
    """A headless Chromium."""

    program: str

    def dom(self, page: Path, hash_: str = "") -> str:
        """The page's elements after its scripts have run."""
        return self._run(page, hash_, "--dump-dom", "--window-size=1200,6000")

    def screenshot(self, page: Path, out: Path, hash_: str = "", *, height: int = 900) -> None:
        self._run(page, hash_, f"--screenshot={out}", f"--window-size=1200,{height}")

    def _run(self, page: Path, hash_: str, *options: str) -> str:
        fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000")
        command = [self.program, *fixed, *options, f"file://{page}#{hash_}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        return done.stdout


@pytest.fixture(scope="session")
def browser() -> Browser:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    return Browser(program)


@pytest.fixture(scope="session")
def classes_in() -> Callable[[str], SimpleNamespace]:
    """What a page's elements are: `classes_in(dom)` counts charts that were drawn, cards, and pictures."""

    def counted(dom: str) -> SimpleNamespace:
        return SimpleNamespace(
            drawn=set(re.findall(r'id="chart-([\w-]+)"[^>]*data-drawn="yes"', dom)),
            cards=len(re.findall(r'<article class="card"', dom)),
            images=len(re.findall(r"<img [^>]*src=\"data:image/webp", dom)),
        )

    return counted
