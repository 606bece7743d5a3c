"""Stores of every encoding, streamed targets and recoded stores: no alarm when they are whole, and a flipped bit in any array is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.recode import plan_recode
from teachonce.stages.settings.recode import RecodeSettings
from teachonce.stages.settings.verify import VerifyTeacherSettings
from teachonce.storage_schemas.encodings import ENCODINGS
from teachonce.storage_schemas.json_file import seal, unseal
from teachonce.storage_schemas.store_description import StoreDescription

Make = Callable[[Any, Path, Any, Any], Path]


def cached(**settings: Any) -> Make:
    def make(shards: Any, out: Path, teacher: Any, plant: Any) -> Path:
        return plant.make_store(shards, out, teacher, **settings)

    return make


def recoded(*, of: dict[str, Any], **settings: Any) -> Make:
    def make(shards: Any, out: Path, teacher: Any, plant: Any) -> Path:
        old = plant.make_store(shards, out.with_name("old.zarr"), teacher, **of)
        stage = plan_recode(str(old), out=str(out), settings=RecodeSettings(**settings))
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
        return out

    return make


def twice(shards: Any, out: Path, teacher: Any, plant: Any) -> Path:
    first = recoded(of={"encoding": "fp16"}, encoding="int8")(shards, out.with_name("between.zarr"), teacher, plant)
    stage = plan_recode(str(first), out=str(out), settings=RecodeSettings(encoding="fp32"))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return out


KINDS: dict[str, Make] = {
    **{name: cached(encoding=name) for name in ENCODINGS},
    "int8": cached(encoding="int8"),
    "adaptive": cached(encoding="logits=adaptive,embedding=int8"),
    "pca": cached(encoding="logits=pca:0.5,embedding=fp32"),
    "pq": cached(encoding="logits=fp32,embedding=pq:4"),
    "sampled": cached(encoding="logits=sampled:20,embedding=fp16"),
    "tokens": cached(targets="embedding,tokens", encoding="fp16", vectors=False),
    "recoded fp16": recoded(of={"encoding": "fp32"}, encoding="fp16"),
    "recoded int8": recoded(of={"encoding": "int8"}, encoding="fp32"),
    "one view": recoded(of={}, views="1,"),
    "some samples": recoded(of={}, label=("red fox",)),
    "one target": recoded(of={"encoding": "fp16"}, targets="embedding"),
    "recoded twice": twice,
    "recoded pca": recoded(of={"encoding": "logits=pca:0.5,embedding=fp16"}, encoding="fp32"),
    "recoded pq": recoded(of={"encoding": "logits=fp16,embedding=pq:4"}, encoding="int8"),
    "recoded to draws": recoded(of={"encoding": "fp16"}, encoding="logits=sampled:20"),
    "logits of embeddings": recoded(of={"targets": "embedding"}, targets="embedding,logits"),
}


@pytest.fixture(scope="module", params=KINDS)
def store_of(request, picture_shards, teacher, plant, tmp_path_factory) -> Any:
    out = tmp_path_factory.mktemp("kind") / "s.zarr"
    return plant.Pair(Path(picture_shards.location.path), KINDS[request.param](picture_shards, out, teacher, plant))


def test_a_whole_store_is_no_alarm(store_of, teacher):
    again = VerifyTeacherSettings(rows=6, model=teacher.model)
    assert store_of.codes(quick=True) == []
    assert store_of.codes(full=True, teacher=again) == []


def test_a_flipped_bit_in_any_array_is_found(store_of, plant, tmp_path):
    pair = plant.Pair(store_of.shards, Path(shutil.copytree(store_of.store, tmp_path / "s.zarr")))
    arrays = sorted(f.parent.name for f in pair.store.glob("*/zarr.json") if not f.parent.name.startswith("class_"))
    arrays = [name for name in arrays if (pair.store / name / "c" / "2").exists()]
    arrays.remove("valid")  # else every chunk is another, and what is wrong is the receipt
    assert len(arrays) > 2
    for name in arrays:
        chunk = pair.chunk(name, 2)
        data = chunk.read_bytes()
        chunk.write_bytes(data[:-9] + bytes([data[-9] ^ 16]) + data[-8:])
    found = pair.findings()
    assert {(each.code, each.shard) for each in found} == {("file-bit-flipped", 2)}
    assert {str(each.error).split("'")[1] for each in found} == set(arrays)
    assert len(found) == len(arrays)


@pytest.mark.parametrize("encoding", ["logits=adaptive", "logits=pca:0.5", "logits=sampled:20"])
def test_anstores_beside_logits_are_found_in_a_lossy_encoding(picture_shards, plant, teacher, tmp_path, encoding):
    store = plant.make_store(picture_shards, tmp_path / "s.zarr", teacher, encoding=encoding, targets="logits")
    pair = plant.Pair(Path(picture_shards.location.path), store)
    pair.rewrite(1, plant.changed("logits", lambda values: values[:, :, ::-1] * 2))
    again = VerifyTeacherSettings(rows=12, model=teacher.model)
    found = pair.findings(full=True, teacher=again)
    assert {each.shard for each in found} == {1}
    assert {each.verdict.word for each in found} == {"mismatch"}


@pytest.mark.parametrize("encoding", ["logits=pca:0.5", "logits=fp32,embedding=pq:4"])
def test_a_damaged_table_of_an_encoding_is_found(picture_shards, plant, teacher, tmp_path, encoding):
    pair = plant.Pair(
        Path(picture_shards.location.path),
        plant.make_store(picture_shards, tmp_path / "s.zarr", teacher, encoding=encoding, targets="both"),
    )
    rows = {"keys", "valid", "view_params", "logits", "embedding"}
    chunks = [f for f in pair.store.glob("*/c/**/*") if f.is_file() and f.relative_to(pair.store).parts[0] not in rows]
    tables = [f for f in chunks if not f.relative_to(pair.store).parts[0].startswith("class_")]
    assert tables
    for table in tables:
        data = table.read_bytes()
        table.write_bytes(data[:-9] + bytes([data[-9] ^ 16]) + data[-8:])
        (found,) = pair.findings()
        assert (found.shard, found.verdict.word) == (None, "damaged")
        table.write_bytes(data)
    assert pair.codes() == []


@pytest.mark.parametrize("encoding", ["logits=pca:0.5", "logits=fp32,embedding=pq:4"])
def test_a_table_of_another_fit_is_found_by_its_own_cause(picture_shards, plant, teacher, tmp_path, encoding):
    pair = plant.Pair(
        Path(picture_shards.location.path),
        plant.make_store(picture_shards, tmp_path / "s.zarr", teacher, encoding=encoding, targets="both"),
    )
    name, target = ("basis", "logits") if "pca" in encoding else ("codebook", "embedding")
    array: Any = zarr.open_array(str(pair.store / f"encoding_{target}_{name}"), mode="r+")
    array[...] = np.asarray(array[...]) * 1.5
    (found,) = pair.findings()
    assert (found.code, found.shard, found.verdict.word) == ("encoding-table-changed", None, "damaged")
    assert str(found.error).startswith(
        f"what the encoding of the {target} was fitted to is not what the rows were stored with: {pair.store}: encoding_{target}_…: "
        "expected digest "
    )


def test_what_values_lost_before_they_were_recoded_is_known(picture_shards, plant, teacher, tmp_path):
    """What is less than the rounding of bf16 is found in a recoded store too, if that lost less."""
    store = recoded(of={"encoding": "fp16"}, encoding="fp32")(picture_shards, tmp_path / "s.zarr", teacher, plant)
    pair = plant.Pair(Path(picture_shards.location.path), store)
    again = VerifyTeacherSettings(rows=12, model=teacher.model)
    noise = np.random.default_rng(0).normal(0, 7e-4, (13, 2, 16)).astype(np.float32)
    root = zarr.open_group(str(store), mode="r+")
    spec = StoreDescription.read(root, store).spec
    assert spec.target("embedding").shape == noise.shape[2:]
    pair.rewrite(1, plant.changed("embedding", lambda values: values + noise))
    assert [each.shard for each in pair.findings(full=True, teacher=again)] == [1]
    recorded: Any = root.attrs["cache"]
    description: Any = unseal(recorded, where=store, hint="")
    lost = description["recoded"].pop("lost")
    assert lost["embedding"] == {"cosine_distance": {"mean": 1.19e-07, "max": 1.19e-07}}
    root.attrs["cache"] = seal(description)  # as a store that an earlier version recoded
    assert pair.codes(full=True, teacher=again) == []
