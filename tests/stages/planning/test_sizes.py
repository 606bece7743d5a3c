"""Bytes and objects of a plan against those of real shards and stores, file by file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.storage_schemas.encodings import ENCODINGS


def run(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def planned(*words: object) -> dict:
    return json.loads(run("plan", *words, "--json", "--seconds", "0.2", "--threads", "1", "--executor", "serial"))


def files_below(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def close(found: float, expected: float, share: float = 0.02) -> bool:
    return abs(found - expected) <= share * expected


@pytest.fixture(scope="module")
def photos(tmp_path_factory, stage_inputs) -> Path:
    """240 pictures in class folders, large enough for shards to be more than their padding."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(5)
    for index in range(240):
        width, height = (int(n) for n in rng.integers(60, 160, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        path = folder / stage_inputs.PICTURE_CLASSES[index % 3] / f"{index:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("classes") / "classes.txt"
    path.write_text("".join(f"class number {i}\n" for i in range(40)))
    return path


@pytest.fixture(scope="module")
def real_shards(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("real") / "shards"
    run("shard", photos, "--out", out, "--shard-size", 50, "--executor", "serial")
    return out


def test_shards_of_a_folder_take_what_the_plan_says(photos, real_shards) -> None:
    found = planned(photos, "--channels", 16, "--shard-size", 50)["shards"]
    real = files_below(real_shards)
    assert found["objects"] == len(real)
    assert close(found["bytes"]["value"], sum(real.values()))
    for part, ending in (("tars", ".tar"), ("indexes", ".npy"), ("manifest", ".parquet")):
        size = sum(size for name, size in real.items() if name.endswith(ending))
        assert close(found["parts"][part]["value"], size, 0.03), part


def test_reduced_shards_take_what_the_plan_says(photos, tmp_path) -> None:
    run("shard", photos, "--out", tmp_path / "s", "--shard-size", 50, "--resize", 40, "--executor", "serial")
    found = planned(photos, "--channels", 16, "--shard-size", 50, "--resize", 40)["shards"]
    assert close(found["bytes"]["value"], sum(files_below(tmp_path / "s").values()))


def test_shards_that_are_there_are_counted(real_shards) -> None:
    found = planned(real_shards, "--channels", 16)
    real = files_below(real_shards)
    assert found["shards"]["bytes"] == {"value": sum(real.values()), "from": "counted"}
    assert found["shards"]["objects"] == len(real)
    assert found["images"]["count"] == {"value": 240, "from": "counted"}


@pytest.fixture(params=[1 << 20, 4096], ids=["whole shards", "rows of a shard"])
def chunks_of_maps(request, monkeypatch) -> None:
    """Targets of several axes in chunks of so many bytes."""
    from teachonce.storage_schemas import store_description

    monkeypatch.setattr(store_description, "LARGE_CHUNK_BYTES", request.param)


@pytest.mark.usefixtures("chunks_of_maps")
def test_tokens_take_what_the_plan_says(real_shards, tiny_clip_teacher, classes, tmp_path) -> None:
    check_store(real_shards, tiny_clip_teacher, classes, tmp_path, "embedding,tokens", "fp16")


@pytest.mark.parametrize(
    ("targets", "encoding"),
    [
        *(("both", encoding) for encoding in ENCODINGS),
        ("embedding", "fp16"),
        ("both", "logits=adaptive:0.9,embedding=int8"),
        ("both", "logits=sampled:20,embedding=pq:4"),
        ("logits", "pca:0.5"),
    ],
)
def test_a_store_takes_what_the_plan_says(real_shards, tiny_clip_teacher, classes, tmp_path, encoding, targets) -> None:
    check_store(real_shards, tiny_clip_teacher, classes, tmp_path, targets, encoding)


def check_store(
    real_shards: Path, tiny_clip_teacher: Path, classes: Path, tmp_path: Path, targets: str, encoding: str
) -> None:
    """Plan a store, make it, and compare every array, and all files."""
    teacher = ("--teacher", f"local-dir:{tiny_clip_teacher}", "--precision", "fp32")
    how = ("--views", 3, "--targets", targets, "--encoding", encoding)
    found = planned(real_shards, *teacher, *how, "--classes", classes)["store"]
    out = tmp_path / "store"
    run("vectors", *teacher[:2], "--classes", classes, "--out", out)
    run("cache", real_shards, *teacher, *how, "--out", out, "--executor", "serial", "--threads", 1)
    real = files_below(out)
    arrays = {name: size for name, size in real.items() if "/c/" in name and not name.startswith("class_")}
    by_array: dict[str, list[int]] = {}
    for name, size in arrays.items():
        by_array.setdefault(name.partition("/")[0], []).append(size)
    assert found["arrays"].keys() == by_array.keys()
    for name, sizes in by_array.items():
        assert found["arrays"][name]["objects"] == len(sizes), name
        some_bytes = 24 * len(sizes)  # of a chunk that holds next to nothing
        assert abs(found["arrays"][name]["bytes"]["value"] - sum(sizes)) <= max(0.02 * sum(sizes), some_bytes), name
    assert close(found["bytes"]["value"], sum(real.values()))
    assert found["objects"] == len(real)


@pytest.mark.slow
def test_a_bundle_takes_what_the_plan_says(real_shards, tiny_clip_teacher, classes, tmp_path) -> None:
    teacher = ("--teacher", f"local-dir:{tiny_clip_teacher}")
    student = ("--student", "timm:test_resnet", "--recipe", "kd")
    found = planned(real_shards, *teacher, "--classes", classes, *student)["bundle_bytes"]
    store, out = tmp_path / "store", tmp_path / "student"
    run("vectors", *teacher, "--classes", classes, "--out", store)
    run("cache", real_shards, *teacher, "--out", store, "--executor", "serial", "--threads", 1)
    run("distill", real_shards, store, *student, "--student-size", 32, "--epochs", 1, "--threads", 1, "--out", out)
    files = ("config.json", "model.safetensors", "class_vectors.safetensors")
    assert found["from"] == "counted"
    assert close(found["value"], sum((out / name).stat().st_size for name in files))


def test_stand_ins_are_as_sure_and_as_unsure_as_docs_say() -> None:
    """The figures of EfficientNet-Lite0 in docs/plan.md."""
    from teachonce.stages.planning.stand_in import stand_in_logits

    logits = stand_in_logits(500, 2, 1000).reshape(-1, 1000).astype(np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(1)
    assert np.abs(np.percentile(entropy, [10, 50, 90]) - [1.12, 3.96, 5.54]).max() < 0.4
    assert np.abs(np.percentile(shares.max(1), [10, 50, 90]) - [0.075, 0.285, 0.852]).max() < 0.1


def test_a_million_rows_by_tables_take_what_real_logits_took() -> None:
    """docs/performance.md: 1,459 bytes a view of 1,000 logits in fp16, and 5,817 of four."""
    found = json.loads(
        run(
            "plan",
            "--images",
            1_000_000,
            "--classes",
            1000,
            "--channels",
            1280,
            "--views",
            4,
            "--executor",
            "serial",
            "--json",
        )
    )["store"]["arrays"]
    assert close(found["logits"]["bytes_a_row"], 5817, 0.05)
    assert close(found["view_params"]["bytes_a_row"], 27, 0.1)
    assert close(found["keys"]["bytes_a_row"], 16, 0.1)
    assert found["logits"]["bytes"]["from"] == "table"


@pytest.mark.parametrize(("encoding", "derived"), [*((encoding, False) for encoding in ENCODINGS), ("fp16", True)])
def test_a_sample_smaller_than_a_shard_tells_what_whole_and_short_shards_take(encoding, derived, tmp_path) -> None:
    """400 rows stand for shards of 1,500, one of which is short; the real store is written with all rows."""
    from teachonce.stages.planning.stand_in import stand_in_block
    from teachonce.stages.planning.store_sizes import store_sizes
    from teachonce.stages.planning.tried import new_spec
    from teachonce.stages.views.spec import ViewSpec
    from teachonce.storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
    from teachonce.storage_schemas.target_store import TargetBlock, create_arrays, open_root, write_block

    targets = (
        TargetSpec(name="logits", axes=("sample", "view", "class"), shape=(60,)),
        TargetSpec(name="embedding", axes=("sample", "view", "channel"), shape=(700,)),
    )
    views = ViewSpec(kind="random_resized_crop", count=6)
    bare = StoreSpec(num_samples=3700, shard_size=1500, num_views=6, targets=targets, encoding=ENCODINGS[encoding])
    spec = new_spec(replace(bare, drawing=views.drawing) if derived else bare, ENCODINGS[encoding])
    description = StoreDescription(spec=spec, fingerprint={}, views=views.to_json(), teacher={}, shards="")
    all_rows = stand_in_block(spec, views, 3700)

    def part(rows: slice) -> TargetBlock:
        values = {name: target[rows] for name, target in all_rows.targets.items()}
        return TargetBlock(
            keys=all_rows.keys[rows],
            valid=all_rows.valid[rows],
            view_params=all_rows.view_params[rows],
            sizes=None if all_rows.sizes is None else all_rows.sizes[rows],
            targets=values,
        )

    found = store_sizes(description, part(slice(0, 400)), {})
    root = open_root(str(tmp_path / "store"), mode="a")
    create_arrays(root, description)
    for shard in range(3):
        write_block(root, spec, shard, part(spec.rows(shard)))
    real = files_below(tmp_path / "store")
    for array in found.arrays:
        sizes = [size for name, size in real.items() if name.startswith(f"{array.name}/c/")]
        assert array.objects == len(sizes), array.name
        few = 0.1 * 3700 if array.name == "image_size" else 48  # sizes of images are like each other
        assert abs(array.bytes.value - sum(sizes)) <= max(0.02 * sum(sizes), few), array.name
    assert found.metadata_bytes == sum(size for name, size in real.items() if name.endswith("zarr.json"))


def test_a_worker_of_ray_has_the_cores_that_it_asks_for(monkeypatch) -> None:
    from teachonce.pipeline import cores
    from teachonce.pipeline.types import Resources
    from teachonce.stages.planning import scratch

    monkeypatch.setattr(cores, "_quota", lambda: None)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(6)))
    seen = {}
    for name, needs, on_ray in (
        ("ray", Resources(cpus=2), True),
        ("here", Resources(cpus=2), False),
        ("gpu", Resources(cpus=2, gpus=1.0), True),
    ):
        with scratch.cores_of_a_worker(needs, on_ray):
            seen[name] = cores.usable_cores()
    assert seen == {"ray": 2, "here": 6, "gpu": 6}
    assert cores.usable_cores() == 6
