"""Whatever JSON of ours says, as a stranger may have written it with right seals: a result or one clear line, never a traceback."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.cache import plan_cache
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.distill import plan_distill
from teachonce.stages.inspect import inspect_store
from teachonce.stages.measures.stored import Stored
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.prompts.folder import read_prompts
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.status import folder_status
from teachonce.stages.students.bundle import load_student
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.vectors import plan_vectors
from teachonce.storage_schemas.errors import TeachonceError

CPU = Compute(device="cpu", precision="fp32", threads=1)
CHANGES = int(os.environ.get("TEACHONCE_CHANGES", "150"))
SEED = int(os.environ.get("TEACHONCE_FLIP_SEED", "0"))

#: What may stand where something else stood.
STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**40,
    2**70,
    0.5,
    1e308,
    "",
    "x",
    "hf-hub:a/b",
    [],
    {},
    [[]],
    {"a": {}},
    [1, 2, 3],
    [None],
)


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in list(items):
        yield value, key
        yield from nodes(inside)


def sealed_anew(value: Any) -> Any:
    """Every object with a seal, sealed again: blake2b-128 of its canonical JSON."""
    if isinstance(value, dict):
        value = {key: sealed_anew(inside) for key, inside in value.items()}
        if "seal" in value:
            rest = {key: inside for key, inside in value.items() if key != "seal"}
            text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            value["seal"] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return value


def change(value: Any, rng: np.random.Generator) -> Any:
    """A copy with one thing left out or replaced."""
    changed = copy.deepcopy(value)
    places = list(nodes(changed))
    container, key = places[rng.integers(len(places))]
    if isinstance(container, dict) and rng.random() < 0.3:
        del container[key]
    else:
        container[key] = STRANGE[rng.integers(len(STRANGE))]
    return sealed_anew(changed)


def readers(shards: Path, store: Path, out: Path) -> list[Callable[[], Any]]:
    def stream() -> None:
        with TargetStream(str(shards), str(store), image_size=8, batch_size=16, seed=0, drop_last=False) as pairs:
            assert pairs.class_vectors
            for _ in pairs.batches(0):
                pass

    def every_image() -> None:
        read = ShardSet.open(str(shards))
        list(read.manifest())
        for shard in range(min(read.corpus.num_shards, 3)):
            reader = read.reader(shard)
            for row in reader.index["row"].tolist():
                reader.read(row)

    def distill() -> None:
        student = StudentConfig(model="timm:test_resnet", pretrained="random", size=32)
        plan_distill(
            str(shards),
            str(store),
            student,
            out=str(out),
            recipe="kd",
            options={"epochs": 1, "batch_size": 16},
            compute=CPU,
            settings=DistillSettings(),
        )

    def inspect() -> None:
        inspect_store(Stored.open(str(store), str(shards)))

    return [
        stream,
        every_image,
        distill,
        inspect,
        lambda: folder_status(str(store)),
        lambda: folder_status(str(shards)),
    ]


@pytest.fixture(scope="module")
def work(picture_shards, tiny_clip_teacher, tmp_path_factory) -> tuple[Path, Path]:
    top = tmp_path_factory.mktemp("work")
    shards, store = Path(shutil.copytree(picture_shards.location.path, top / "shards")), top / "store.zarr"
    teacher = TeacherConfig(model=f"local-dir:{tiny_clip_teacher}")
    vectors = plan_vectors(teacher, out=str(store), settings=VectorsSettings(classes=str(shards)), compute=CPU)
    run_stage(vectors, vectors.store, SerialExecutor(), progress=False)
    stage = plan_cache(
        str(shards),
        teacher,
        out=str(store),
        views=None,
        settings=CacheSettings(targets="both", encoding="fp16", batch_size=16),
        compute=CPU,
    )
    run_stage(stage, stage.store, SerialExecutor(), progress=False)
    return shards, store


def test_json_of_a_stranger(work, tmp_path):
    shards, store = work
    files = [
        file
        for folder in work
        for file in sorted(folder.rglob("*.json"))
        if not {"timings", "failures", "driver.json"} & set(file.parts)
    ]
    assert {"zarr.json", "plan.json", "corpus.json", "000001.json"} <= {file.name for file in files}
    rng = np.random.default_rng(SEED)
    refused = 0
    for number in range(CHANGES):
        file = files[number % len(files)]
        whole = file.read_bytes()
        changed = change(json.loads(whole), rng)
        file.write_text(json.dumps(changed))
        for read in readers(shards, store, tmp_path / f"{number}"):
            try:
                read()
            except TeachonceError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"{file}: {json.dumps(changed)[:3000]}") from error
        file.write_bytes(whole)
    assert refused
    for read in readers(shards, store, tmp_path / "last"):
        read()
    assert Location.of(store).exists()


def student(folder: Path) -> None:
    """All that a bundle is used for: pixels of an image, logits, names."""
    loaded = load_student(str(folder))
    pixels_CHW = loaded.pixels(Image.new("RGB", (30, 20), (200, 30, 90)))
    loaded.vectors.logits(loaded.student(pixels_CHW[None]))
    assert repr(loaded)
    assert list(loaded.vectors.names)
    folder_status(str(folder))


def prompts(folder: Path) -> None:
    """All that prompts are read for, but for the model that they go with."""
    loaded = read_prompts(str(folder))
    assert loaded.shape
    assert list(loaded.config.class_names)
    assert loaded.config.backbone is not None
    folder_status(str(folder))


@pytest.mark.parametrize(("name", "read"), [("student", student), ("prompts", prompts)])
def test_configs_of_a_stranger(tmp_path, monkeypatch, name, read):
    """Those of 0.1.0 have no seal, so all that they say is read."""

    def refuse(*_arguments: object, **_named: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    folder = Path(shutil.copytree(Path(__file__).parents[1] / "data/0.1.0" / name, tmp_path / name))
    file = folder / "config.json"
    whole = json.loads(file.read_bytes())
    rng = np.random.default_rng([SEED, len(name)])
    refused = 0
    for _ in range(2 * CHANGES):
        changed = change(whole, rng)
        file.write_text(json.dumps(changed))
        try:
            read(folder)
        except TeachonceError:
            refused += 1
        except Exception as error:
            raise AssertionError(json.dumps(changed)[:3000]) from error
    assert refused
    file.write_text(json.dumps(whole))
    read(folder)
