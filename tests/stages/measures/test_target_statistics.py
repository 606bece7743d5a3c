"""Means and standard deviations of stored targets: numpy's own, over all usable rows and the views that are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from teachonce.stages.measures import target_statistics as target_statistics_module
from teachonce.stages.measures.target_statistics import Statistics, channel_axis, target_statistics
from teachonce.stages.pairs.store import StoreFacts, store_facts
from teachonce.stages.training.standardize import Standardize
from teachonce.storage_schemas.errors import InputError
from teachonce.storage_schemas.store_description import TargetSpec


@pytest.mark.parametrize("views", [1, 3])
def test_those_of_numpy(known_store, views):
    found = target_statistics(store_facts(known_store.location), {"embedding": "e", "logits": "l"}, views)
    for name, shown in (("embedding", "e"), ("logits", "l")):
        values = (
            known_store.targets[name][known_store.valid][:, :views]
            .astype(np.float64)
            .reshape(-1, len(found[shown].mean_C))
        )
        assert found[shown].mean_C == pytest.approx(values.mean(axis=0), rel=1e-6)
        assert found[shown].std_C == pytest.approx(values.std(axis=0), rel=1e-6)
        assert found[shown].axis == -1


def test_far_from_zero_no_digits_are_lost(picture_shards, make_store, tmp_path):
    rng = np.random.default_rng(1)
    values = (5000 + rng.normal(0, 1e-2, (picture_shards.corpus.num_rows, 3, 4))).astype(np.float32)
    store = make_store(picture_shards, tmp_path / "s.zarr", widths={"embedding": 4}, targets={"embedding": values})
    found = target_statistics(store_facts(store.location), {"embedding": "embedding"}, 3)["embedding"]
    exact = values[store.valid].astype(np.float64).reshape(-1, 4)
    assert found.std_C == pytest.approx(exact.std(axis=0), rel=1e-5)


def test_a_channel_that_never_changes(picture_shards, make_store, tmp_path):
    values = np.random.default_rng(1).normal(size=(picture_shards.corpus.num_rows, 3, 4)).astype(np.float32)
    values[:, :, 2] = 7
    store = make_store(picture_shards, tmp_path / "s.zarr", widths={"embedding": 4}, targets={"embedding": values})
    with pytest.raises(InputError, match=r"target embedding, channel 2: found 1 such channels of 4"):
        target_statistics(store_facts(store.location), {"embedding": "embedding"}, 3)


@pytest.fixture
def passes(tmp_path, monkeypatch) -> list[tuple[str, ...]]:
    """The targets of each pass over a store from now on, where what is found is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen, read = [], target_statistics_module._read

    def counted(facts, names, views):
        seen.append(tuple(names))
        return read(facts, names, views)

    monkeypatch.setattr(target_statistics_module, "_read", counted)
    return seen


def test_they_are_remembered_for_just_these_chunks_and_views(picture_shards, make_store, tmp_path, passes):
    def store(name: str, seed: int) -> StoreFacts:
        values = np.random.default_rng(seed).normal(size=(picture_shards.corpus.num_rows, 3, 4)).astype(np.float32)
        made = make_store(picture_shards, tmp_path / name, widths={"embedding": 4}, targets={"embedding": values})
        return store_facts(made.location)

    def found(facts: StoreFacts, views: int) -> tuple[str, bytes, bytes, int]:
        one = target_statistics(facts, {"embedding": "shown"}, views)["shown"]
        return one.digest, one.mean_C.tobytes(), one.std_C.tobytes(), one.axis

    first, others = store("s.zarr", 1), store("t.zarr", 2)
    of_first = found(first, 3)
    assert found(first, 3) == of_first
    assert found(store("again.zarr", 1), 3) == of_first  # wherever it lies
    assert passes == [("embedding",), (), ()]
    assert found(first, 2) != of_first
    assert found(others, 3) != of_first
    assert passes[3:] == [("embedding",), ("embedding",)]


@pytest.mark.parametrize("damage", [b"{", b'{"mean": [0.0], "std": [1.0]}', None])
def test_a_note_that_cannot_be_used_is_written_anew(damage, known_store, tmp_path, passes):
    def digest() -> str:
        return target_statistics(store_facts(known_store.location), {"logits": "logits"}, 3)["logits"].digest

    expected = digest()
    (note,) = (tmp_path / "cache" / "teachonce" / "statistics").iterdir()
    whole = note.read_bytes()
    note.write_bytes(whole.replace(b"1", b"2", 1) if damage is None else damage)
    assert [digest(), digest()] == [expected] * 2
    assert passes == [("logits",), ("logits",), ()]
    assert note.read_bytes() == whole


@pytest.mark.parametrize("shape", [(5,), (9, 5), (5, 2, 3)])
def test_both_sides_are_brought_to_one_scale(shape):
    """Channels lie last in vectors and tokens, first in maps."""
    target = TargetSpec(name="t", axes=("sample", "view", *"abc"[: len(shape)]), shape=shape)
    rng = np.random.default_rng(0)
    mean_C, std_C = rng.normal(size=5).astype(np.float32), rng.uniform(1, 2, 5).astype(np.float32)
    standardize = Standardize({"t": Statistics(mean_C=mean_C, std_C=std_C, axis=channel_axis(target))})
    values = rng.normal(size=(4, *shape)).astype(np.float32)
    found = standardize({"t": torch.from_numpy(values), "label": torch.arange(4)})
    wide = [1, -1, 1, 1] if len(shape) == 3 else [1] * len(shape) + [-1]
    assert found["t"].numpy() == pytest.approx(
        (values - mean_C.reshape(wide)) / std_C.reshape(wide), rel=1e-5, abs=1e-6
    )
    assert found["label"].tolist() == [0, 1, 2, 3]
