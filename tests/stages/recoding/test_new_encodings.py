"""`teachonce recode --encoding` and budgets: against `cache` with that encoding, and against encodings by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger
from teachonce.pipeline.runner import run_stage
from teachonce.stages.cache import plan_cache
from teachonce.stages.encodings.budget import Rows, fit
from teachonce.stages.measures.stored import Stored
from teachonce.stages.models.compute import Compute
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.recode import plan_recode
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.recode import RecodeSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.vectors import plan_vectors
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.encodings.spelling import KNOWN, one
from teachonce.storage_schemas.errors import InputError, MismatchError
from teachonce.storage_schemas.store_description import TargetSpec

EACH = [
    ("logits", "fp16"),
    ("logits", "int8"),
    ("logits", "pca:0.25"),
    ("logits", "adaptive:0.9"),
    ("logits", "sampled:40"),
    ("embedding", "int8"),
    ("embedding", "pca:0.01"),
    ("embedding", "pq:3"),
]
FP32 = Compute(device="cpu", precision="fp32", threads=1)


def recode(store: Any, out: Path, **settings: Any) -> Stored:
    stage = plan_recode(str(store), out=str(out), settings=RecodeSettings(**settings))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return Stored.open(str(out))


def arrays(out: Path) -> dict[str, bytes]:
    """The chunks of every array, and what encodings were fitted to."""
    return {f.relative_to(out).as_posix(): f.read_bytes() for f in out.rglob("*") if f.is_file() and "/c/" in str(f)}


def values(out: Path, name: str) -> np.ndarray:
    return np.asarray(zarr.open_group(str(out), mode="r")[name][:])


@pytest.fixture(scope="module")
def cached(picture_shards, tiny_clip_teacher, tmp_path_factory):
    """`cached(encoding)`: a store of a real teacher."""
    folder = tmp_path_factory.mktemp("cached")
    teacher = TeacherConfig(model=f"local-dir:{tiny_clip_teacher}")
    (folder / "classes.txt").write_text("red fox\nBlue_Jay\nhouse-cat\n")

    def make(encoding: str) -> Path:
        out = folder / f"{encoding}.zarr"
        if not out.exists():
            vectors = VectorsSettings(classes=str(folder / "classes.txt"))
            views = ViewSpec(kind="random_resized_crop", count=2, seed=3)
            settings = CacheSettings(targets="both", batch_size=32, encoding=encoding)
            shards = str(picture_shards.location)
            first = plan_vectors(teacher, out=str(out), settings=vectors, compute=FP32)
            run_stage(first, first.store, SerialExecutor(), progress=False)
            stage = plan_cache(shards, teacher, out=str(out), views=views, settings=settings, compute=FP32)
            run_stage(stage, stage.store, SerialExecutor(), progress=False)
        return out

    return make


@pytest.mark.parametrize(
    "encoding", ["fp16", "int8", "logits=adaptive:0.9,embedding=fp32", "logits=sampled:9:3,embedding=int8"]
)
def test_the_bytes_that_cache_writes(cached, tmp_path, encoding):
    recode(cached("fp32"), tmp_path / "out.zarr", encoding=encoding)
    expected = arrays(cached(encoding))
    assert arrays(tmp_path / "out.zarr") == expected
    again = recode(tmp_path / "out.zarr", tmp_path / "copy.zarr")
    assert arrays(tmp_path / "copy.zarr") == expected
    made = Stored.open(str(tmp_path / "out.zarr")).description
    assert again.description.measured == made.measured
    assert again.description.spec == made.spec


@pytest.mark.parametrize(("name", "encoding"), EACH)
def test_every_encoding_by_itself(taught_store, tmp_path, name, encoding):
    """The other target is in fp16, so that this one has an encoding of its own."""
    other = {"logits": "embedding", "embedding": "logits"}[name]
    rest = "int8" if encoding == "fp16" else "fp16"
    stored = recode(taught_store.location, tmp_path / "out.zarr", encoding=f"{name}={encoding},{other}={rest}")
    known, valid = taught_store.targets[name], taught_store.valid
    target = TargetSpec(name=name, axes=("sample", "view", "class"), shape=known.shape[2:])
    keys = [entry.key for entry in taught_store.shards.manifest()]
    usable = Rows(target=target, values=known[valid], keys=[k for k, ok in zip(keys, valid, strict=True) if ok])
    fitted = fit(usable, one(encoding)).encoding
    blank = np.where(valid[:, None, None], known, np.float32(np.nan))
    for array, expected in fitted.encode(target, blank, keys=keys, first_view=0).items():
        np.testing.assert_array_equal(values(tmp_path / "out.zarr", array)[valid], expected[valid])
    description = stored.description
    assert description.spec.encoding_of(description.spec.target(name)) == fitted
    cost = description.measured[name]["kl"]["1"]
    true = torch.log_softmax(torch.tensor(taught_store.targets["logits"]).double(), -1)
    found = []
    for shard in range(4):
        rows = description.spec.rows(shard)
        for view in range(3):
            if name == "logits":
                again = stored.logits(shard, view)
            else:
                decoded = fitted.decode(
                    target, {a.name: values(tmp_path / "out.zarr", a.name)[rows, view] for a in fitted.arrays(target)}
                )
                again = stored.vectors.logits(decoded)
            q = torch.log_softmax(torch.tensor(again).double(), -1)
            p = true[rows, view]
            one_way, other_way = (p.exp() * (p - q)).sum(-1), torch.nan_to_num(q.exp() * (q - p)).sum(-1)
            found.append((other_way if "sampled" in encoding else one_way)[torch.tensor(valid[rows])])
    assert float(torch.cat(found).mean()) <= 1.01 * cost["max"] + 1e-6


def test_every_name_of_an_encoding_is_tried_here():
    assert {text.split(":")[0] for _, text in EACH} == set(KNOWN) - {
        "fp32",  # which stays as it is
        "int8-channel",  # of maps: tests/storage_schemas/test_map_encodings.py
    }


def test_what_was_fitted_is_copied_with_some_views_and_samples(taught_store, tmp_path):
    first, second = tmp_path / "first.zarr", tmp_path / "second.zarr"
    made = recode(taught_store.location, first, encoding="logits=pca:0.25,embedding=pq:3")
    some = recode(first, second, views="2,0", only_shards=(1, 2))
    for target in made.spec.targets:
        encoding = made.spec.encoding_of(target)
        assert some.spec.encoding_of(some.spec.target(target.name)) == encoding
        for array in encoding.arrays(target):
            before, after = values(first, array.name), values(second, array.name)
            valid = taught_store.valid.copy()
            valid[:13], valid[39:] = False, False
            np.testing.assert_array_equal(after[valid], before[valid][:, [2, 0]])
    assert some.description.measured == made.description.measured
    stream = TargetStream(taught_store.shards, str(second), image_size=16, batch_size=4)
    assert stream.num_samples == int(taught_store.valid[13:39].sum())
    # One target alone, in a plain encoding, is a store as any other.
    plain = recode(first, tmp_path / "plain.zarr", targets="embedding", encoding="fp32")
    assert (plain.spec.encoding.name, plain.spec.targets[0].encoding) == ("fp32", None)


def test_another_encoding_of_one_target_leaves_the_other(taught_store, tmp_path):
    recode(taught_store.location, tmp_path / "first.zarr", encoding="logits=pca:0.25,embedding=pq:3")
    made = recode(tmp_path / "first.zarr", tmp_path / "second.zarr", encoding="embedding=int8")
    texts = {t.name: made.spec.encoding_of(t).text for t in made.spec.targets}
    assert texts == {"logits": "pca:0.25", "embedding": "int8"}
    for name in ("logits", "encoding_logits_basis"):
        np.testing.assert_array_equal(values(tmp_path / "second.zarr", name), values(tmp_path / "first.zarr", name))
    assert not (tmp_path / "second.zarr/encoding_embedding_codebook").exists()


def test_budgets(taught_store, tmp_path):
    stage = plan_recode(
        str(taught_store.location),
        out=str(tmp_path / "kl.zarr"),
        settings=RecodeSettings(targets="logits", max_kl=0.01),
    )
    assert any("within 0.01 nats" in note for note in stage.notes)
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    small = Stored.open(str(tmp_path / "kl.zarr")).description
    assert small.measured["logits"]["kl"]["1"]["mean"] <= 0.01
    made = recode(taught_store.location, tmp_path / "bytes.zarr", targets="logits", max_bytes=40)
    assert made.description.measured["logits"]["bytes_per_view"] <= 40
    with pytest.raises(InputError, match="no encoding keeps the budget"):
        recode(taught_store.location, tmp_path / "no.zarr", targets="logits", max_bytes=0.1)
    assert not (tmp_path / "no.zarr").exists()


def test_a_begun_store_keeps_what_it_was_fitted_to(taught_store, tmp_path, monkeypatch):
    asked = {"encoding": "logits=pca:0.25,embedding=pq:3"}
    recode(taught_store.location, tmp_path / "whole.zarr", **asked)
    commit, done = Ledger.commit, []

    def dies(self, receipt, seconds):
        done.append(receipt.key)
        if len(done) == 2:
            raise KeyboardInterrupt
        commit(self, receipt, seconds)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "commit", dies)
        with pytest.raises(KeyboardInterrupt):
            recode(taught_store.location, tmp_path / "out.zarr", **asked)
    monkeypatch.setattr("teachonce.stages.recoding.new_encodings.choices", None)  # nothing is fitted again
    recode(taught_store.location, tmp_path / "out.zarr", **asked)
    assert arrays(tmp_path / "out.zarr") == arrays(tmp_path / "whole.zarr")
    with pytest.raises(MismatchError, match="holds the output of another"):
        recode(taught_store.location, tmp_path / "out.zarr", encoding="logits=pca:0.5,embedding=pq:3")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoding": "zip"}, "unknown encoding: --encoding: expected fp32, fp16, int8"),
        ({"encoding": "tokens=int8"}, "unknown encoding: --encoding: expected one of the targets logits, embedding"),
        ({"encoding": "int8", "max_kl": 0.1}, "a budget, and no target whose encoding it may choose"),
        (
            {"max_kl": 0.1, "to": "npy"},
            "files for other programs have no encoding: --max-kl, --to: found --max-kl 0.1 --to npy",
        ),
    ],
)
def test_what_is_no_encoding(taught_store, tmp_path, settings, message):
    with pytest.raises(InputError) as error:
        recode(taught_store.location, tmp_path / "out.zarr", **settings)
    assert str(error.value).startswith(message)
    assert not (tmp_path / "out.zarr").exists()
