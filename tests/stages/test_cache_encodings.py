"""`cache --encoding`, `--max-kl` and `--max-bytes`: encodings that are fitted, measured and chosen on the teacher's own outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.stages.encodings.measure import divergence
from teachonce.stages.measures.stored import Stored
from teachonce.storage_schemas.target_store import read_target


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_clip_teacher) -> Path:
    """A store with class vectors alone."""
    store = tmp_path_factory.mktemp("vectors") / "s.zarr"
    classes = store.parent / "classes.txt"
    classes.write_text("red fox\nBlue_Jay\nhouse-cat\n")
    words = f"vectors --teacher local-dir:{tiny_clip_teacher} --classes {classes} --out {store}"
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 0, done.output
    return store


@pytest.fixture
def cache(prepared, picture_shards, tiny_clip_teacher, tmp_path):
    """`cache(name, options)`: (exit code, stderr, the store)."""

    def run(name: str, options: str) -> tuple[int, str, Path]:
        store = tmp_path / name
        if not store.exists():
            shutil.copytree(prepared, store)
        words = f"cache {picture_shards.location} --teacher local-dir:{tiny_clip_teacher} --views 2 --threads 1 --batch-size 8"
        done = CliRunner().invoke(main, [*words.split(), "--executor", "serial", "--out", str(store), *options.split()])
        return done.exit_code, done.stderr, store

    return run


def files_of(store: Path) -> dict[str, bytes]:
    notes = {"timings", "failures"}
    files = (p for p in store.rglob("*") if p.is_file() and not notes & set(p.parts) and p.name != "driver.json")
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


def logits_of(store: Path, target: str = "logits") -> np.ndarray:
    stored = Stored.open(str(store))
    shards = range(stored.rows.num_shards)
    parts = [np.stack([read_target(stored.root, stored.rows, s, target, v) for v in range(2)], 1) for s in shards]
    return np.concatenate(parts)


def attribute(store: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store / "zarr.json").read_bytes())["attributes"]["cache"]
    return found


@pytest.mark.parametrize("encoding", ["int8", "logits=pca:0.02,embedding=pq:4", "logits=adaptive:0.99:63"])
def test_what_was_measured_is_what_the_store_costs(cache, encoding):
    assert cache("exact", "--targets both --encoding fp32")[0] == 0
    code, stderr, store = cache("encoded", f"--targets both --encoding {encoding}")
    assert code == 0, stderr
    exact, found = logits_of(store.parent / "exact"), logits_of(store)
    valid = ~np.isnan(exact[:, 0, 0])
    assert np.isnan(found[~valid]).all()
    kl = divergence(exact[valid].reshape(-1, exact.shape[2]), found[valid].reshape(-1, exact.shape[2]))
    measured = attribute(store)["measured"]
    assert set(measured) == {"embedding", "logits"}
    assert set(measured["logits"]["kl"]) == {"1", "2", "4"}
    assert measured["logits"]["kl"]["1"]["mean"] == pytest.approx(kl.mean(), rel=1.0, abs=1e-6)
    assert measured["embedding"]["cosine_distance"]["mean"] >= 0


def test_the_smallest_within_a_budget_is_taken_and_a_killed_run_keeps_it(cache):
    code, stderr, store = cache("one", "--targets logits --max-kl 0.01")
    assert code == 0, stderr
    line = next(line for line in stderr.splitlines() if "logits in" in line)
    assert "the smallest of" in line
    assert "within 0.01 nats" in line
    before = files_of(store)
    chosen = attribute(store)["fingerprint"]["encoding"]
    assert chosen["asked"] == {"logits": "by budget", "max_kl": 0.01, "views": 4096}
    assert attribute(store)["measured"]["logits"]["kl"]["1"]["mean"] <= 0.01
    (store / "ledger/cache/receipts/000001.json").unlink()
    for chunk in store.glob("*/c/1/**/*"):
        if chunk.is_file():
            chunk.unlink()
    code, stderr, _ = cache("one", "--targets logits --max-kl 0.01")
    assert code == 0, stderr
    assert files_of(store) == before
    code, stderr, _ = cache("one", "--targets logits --max-kl 0.02")
    assert code != 0
    assert "encoding.asked.max_kl" in stderr
    code, stderr, _ = cache("one", "--targets logits")
    assert code != 0
    assert "field 'encoding'" in stderr


def test_the_most_exact_within_bytes_is_taken(cache):
    code, stderr, store = cache("large", "--targets embedding --max-bytes 1000")
    assert code == 0, stderr
    assert attribute(store)["fingerprint"]["encoding"]["embedding"] == "fp32"
    code, stderr, store = cache("small", "--targets embedding --max-bytes 40")
    assert code == 0, stderr
    assert attribute(store)["fingerprint"]["encoding"]["embedding"] != "fp32"
    assert attribute(store)["measured"]["embedding"]["bytes_per_view"] <= 40


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            "--targets logits --max-bytes 0.5",
            "no encoding keeps the budget: logits: --max-bytes: expected at most 0.5 bytes a view",
        ),
        (
            "--targets logits --encoding pq:4",
            "unknown encoding: --encoding: expected fp32, fp16, int8, pca, adaptive, sampled for logits",
        ),
        (
            "--targets embedding --encoding int9",
            "unknown encoding: --encoding: expected fp32, fp16, int8, int8-channel, pca",
        ),
        ("--targets logits --encoding logits=int8 --max-kl 1", "a budget, and no target whose encoding it may choose"),
        ("--targets embedding --encoding pq:99", "at most 16"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(cache, options, expected):
    code, stderr, _ = cache("refused", options)
    assert code == 1, stderr
    assert expected in stderr.replace("\n", " ")
    assert "Traceback" not in stderr


def test_a_student_is_trained_on_draws(cache, picture_shards):
    code, stderr, store = cache("drawn", "--targets logits --encoding sampled:20")
    assert code == 0, stderr
    words = f"distill {picture_shards.location} {store} --student timm:test_resnet --student-pretrained random --epochs 1 --batch-size 8"
    done = CliRunner().invoke(main, [*words.split(), "--recipe", "kd", "--out", str(store.parent / "student")])
    assert done.exit_code == 0, done.output
    assert "draws" not in done.stderr
    other = [*words.split(), "--recipe", "kd", "--temperature", "2", "--out", str(store.parent / "warm")]
    warm = CliRunner().invoke(main, other)
    assert "at temperature 2 their gradients are biased" in " ".join(warm.stderr.split())
    losses = [
        json.loads(line)["loss"]
        for line in (store.parent / "student/run/log.jsonl").read_text().splitlines()
        if "loss" in line
    ]
    assert losses
    assert np.isfinite(losses).all()
    done = CliRunner().invoke(main, f"inspect {store}".split())
    assert done.exit_code == 0, done.output
    assert "PROBLEMS" not in done.output
