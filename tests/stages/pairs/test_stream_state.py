"""The stream as anyone's data set: epochs in turn, a state that goes anywhere, ranks, and other trainers' loaders."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import teachonce
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from teachonce import TargetStream
from teachonce.stages.samples import images
from teachonce.storage_schemas.errors import InputError, MismatchError
from torch.utils.data import DataLoader, IterableDataset

DOCS = Path(__file__).parents[3] / "docs"


def open_stream(known, **options):
    defaults = {"image_size": 8, "batch_size": 8, "seed": 3}
    return TargetStream(str(known.shards.location.path), known.location.path, **(defaults | options))


def rows(batches):
    return [batch.rows_N.tolist() for batch in batches]


def test_an_epoch_after_the_other(known_store):
    stream = open_stream(known_store)
    assert isinstance(stream, IterableDataset)
    assert len(stream) == 5  # type: ignore[arg-type]
    found = [rows(stream) for _ in range(3)]
    assert found == [rows(stream.batches(epoch)) for epoch in range(3)]  # type: ignore[attr-defined]
    assert stream.epoch == 3  # type: ignore[attr-defined]
    stream.set_epoch(1)  # type: ignore[attr-defined]
    images, targets, row_numbers = next(iter(stream))
    assert images.shape == (8, 3, 8, 8)
    assert (targets["logits"].shape, row_numbers.tolist()) == ((8, 7), found[1][0])
    assert rows(stream) == found[1][1:]  # an iteration that was left goes on


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(done=st.integers(0, 14), batch_size=st.integers(1, 12))
def test_a_state_goes_on_at_the_next_sample_with_any_batch_size(known_store, done, batch_size):
    """Three epochs of 5 steps, stopped anywhere: state as JSON, into a stream with other batches."""
    first = open_stream(known_store)
    order = [[row for batch in rows(first.batches(epoch)) for row in batch] for epoch in range(4)]
    whole = [sorted(epoch) for epoch in order]
    seen = 0
    while seen < done:
        for _ in first:
            seen += 1
            if seen == done:
                break
    state = json.loads(json.dumps(first.state_dict()))
    assert (state["epoch"], state["samples"]) == (done // 5, done % 5 * 8)
    again = open_stream(known_store, batch_size=batch_size)
    again.load_state_dict(state)
    rest = [row for batch in rows(again) for row in batch]
    complete = [row for batch in rows(open_stream(known_store, batch_size=1).batches(done // 5)) for row in batch]
    expected = complete[done % 5 * 8 :]
    assert rest == expected[: len(expected) // batch_size * batch_size]
    assert len(whole[0]) == 40


def test_a_trainer_may_count_instead_of_asking_for_the_end(known_store):
    """As Lightning does: `len` batches, and never the one more that would end the iteration."""
    stream = open_stream(known_store)
    found = []
    for _ in range(3):
        batches = iter(stream)
        found.append([next(batches).rows_N.tolist() for _ in range(len(stream))])
    assert found == [rows(open_stream(known_store).batches(epoch)) for epoch in range(3)]


def test_resuming_decodes_nothing_that_was_consumed(known_store, monkeypatch):
    decoded = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda *given: decoded.append(1) or decode(*given))
    stream = open_stream(known_store)
    stream.load_state_dict(stream.state_dict() | {"epoch": 7, "samples": 24})
    next(iter(stream))
    assert len(decoded) == 8


def test_a_state_of_another_stream_is_refused(known_store):
    stream = open_stream(known_store)
    with pytest.raises(MismatchError) as error:
        open_stream(known_store, seed=4).load_state_dict(stream.state_dict())
    assert error.value.fields == {
        "code": "stream-state-other",
        "where": "load_state_dict: field 'seed'",
        "expected": "4 (this stream)",
        "found": "3 (the state)",
        "hint": "open the stream as it was, or start anew without this state",
    }
    with pytest.raises(MismatchError) as error:
        open_stream(known_store, views=2).load_state_dict(stream.state_dict())
    assert (error.value.code, str(error.value.expected), str(error.value.found)) == (
        "stream-state-other",
        "2 (this stream)",
        "3 (the state)",
    )
    assert str(error.value.where).endswith("field 'views'")
    with pytest.raises(InputError) as refused:
        stream.load_state_dict(stream.state_dict() | {"epoch": "1"})
    assert refused.value.code == "stream-state-malformed"


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_read_the_parts_of_every_batch(known_store, world):
    alone = list(open_stream(known_store).batches(1))
    ranks = [list(open_stream(known_store, rank=r, world_size=world).batches(1)) for r in range(world)]
    assert len(alone) == 5
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(torch.cat([p.rows_N for p in parts]), batch.rows_N)
        assert torch.equal(torch.cat([p.images_NCHW for p in parts]), batch.images_NCHW)
        assert torch.equal(torch.cat([p.targets["logits"] for p in parts]), batch.targets["logits"])
        assert {len(p.rows_N) for p in parts} == {8 // world}


def test_ranks_that_cannot_be_are_refused(known_store):
    with pytest.raises(InputError) as error:
        open_stream(known_store, rank=0, world_size=3)
    assert error.value.fields == {
        "code": "batch-not-divisible",
        "where": "--batch-size",
        "expected": "a multiple of 3",
        "found": "8",
    }
    with pytest.raises(InputError) as refused:
        open_stream(known_store, rank=2, world_size=2)
    assert (refused.value.code, str(refused.value.where), str(refused.value.expected)) == (
        "rank-impossible",
        "TargetStream",
        "0 to 1",
    )
    assert str(refused.value.found).startswith("2")
    with pytest.raises(InputError) as refused:
        open_stream(known_store, rank=1)
    assert refused.value.code == "rank-without-world"


def test_fewer_views_than_the_store_has(known_store):
    two = open_stream(known_store, views=2)
    every = open_stream(known_store)
    for epoch, view in ((2, 0), (3, 1)):
        batch = next(two.batches(epoch))
        expected = known_store.targets["logits"][batch.rows_N.numpy(), view]
        assert np.array_equal(batch.targets["logits"].numpy(), expected)
    assert (two.num_views, every.num_views) == (2, 3)
    with pytest.raises(InputError) as error:
        open_stream(known_store, views=4)
    assert error.value.fields == {
        "code": "views-not-in-store",
        "where": str(known_store.location),
        "expected": "1 to 3 views (random_resized_crop)",
        "found": "--views 4",
        "hint": "leave out --views, or teachonce cache SHARDS --views 4 --teacher … --out ANOTHER_STORE",
    }


def test_a_loader_around_it(known_store):
    """As Lightning and accelerate want one; its own processes would each read everything."""
    stream = open_stream(known_store)
    loader = DataLoader(stream, batch_size=None)
    assert len(loader) == 5
    assert rows(loader) == rows(stream.batches(0))
    assert stream.state_dict()["epoch"] == 1
    with pytest.raises(InputError, match="the stream has processes of its own"):
        next(iter(DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="fork")))


def test_the_public_names_are_there():
    assert set(teachonce.__all__) == {"TargetStream", "__version__", "join_targets", "load_student", "open_store"}
    assert all(getattr(teachonce, name) for name in teachonce.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        teachonce.nothing  # noqa: B018


def example(number: int) -> str:
    return re.findall(r"```python\n(.*?)```", (DOCS / "streams.md").read_text(), re.DOTALL)[number]


def test_the_documented_loop_runs(taught_store, tmp_path, monkeypatch, make_store):
    """The example as it stands, with a smaller net and fewer epochs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").symlink_to(taught_store.shards.location.path)
    (tmp_path / "targets.zarr").symlink_to(taught_store.location.path)
    code = example(0)
    assert len(code.splitlines()) <= 15
    for wide, small in (
        ("resnet18", "test_resnet"),
        ("size=224", "size=32"),
        ("range(20)", "range(2)"),
        ("batch_size=64", "batch_size=16"),
        ("num_workers=2", "num_workers=0"),
    ):
        assert wide in code
        code = code.replace(wide, small)
    names: dict = {}
    exec(code, names)  # the documentation's own code
    assert names["loss"].isfinite()
    state = json.loads((tmp_path / "stream.json").read_text())
    assert (state["epoch"], state["samples"]) == (2, 0)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the collector
def test_the_documented_pipeline_runs(taught_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").symlink_to(taught_store.shards.location.path)
    (tmp_path / "targets.zarr").symlink_to(taught_store.location.path)
    code = example(2)
    for wide, small in (("size=224", "size=16"), ("4, 7", "3, 4")):  # 3 views, epoch 4
        assert wide in code
        code = code.replace(wide, small)
    names: dict = {}
    exec(code, names)  # the documentation's own code
    batches = list(names["dataset"])
    assert sum(len(images) for images, _ in batches) == 45
    assert batches[0][0].shape[1:] == (3, 16, 16)
    assert batches[0][1].shape[1:] == (7,)
