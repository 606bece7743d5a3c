"""Rows of a corpus that grew: shards in the middle may be short, arrays are longer than there are samples."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zarr
from teachonce.storage_schemas.corpus_history import CorpusState, changed_rows
from teachonce.storage_schemas.encodings import ENCODINGS
from teachonce.storage_schemas.errors import DamagedError
from teachonce.storage_schemas.manifest import Corpus
from teachonce.storage_schemas.row_layout import RowLayout
from teachonce.storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from teachonce.storage_schemas.target_store import TargetBlock, create_arrays, open_root, read_block, write_block
from teachonce.storage_schemas.view_params import no_views


def plainly(shard_size: int, parts: tuple[int, ...]) -> list[range]:
    """The rows of all shards, sample by sample."""
    shards: list[list[int]] = []
    for samples in parts:
        for place in range(samples):
            if place % shard_size == 0:
                shards.append([])
            shards[-1].append((len(shards) - 1) * shard_size + len(shards[-1]))
    return [range(rows[0], rows[-1] + 1) for rows in shards]


@pytest.mark.parametrize("parts", [(7,), (10,), (3, 4), (10, 10), (23, 1, 10, 5), (1, 1, 1), (20, 3, 30)])
def test_rows_follow_each_other_within_parts_and_parts_begin_with_a_shard(parts):
    layout = RowLayout.of(10, parts)
    expected = plainly(10, parts)
    assert [layout.rows(shard) for shard in range(layout.num_shards)] == expected
    assert (layout.num_samples, layout.num_shards, layout.num_rows) == (sum(parts), len(expected), expected[-1].stop)
    rows = {row for shard in expected for row in shard}
    assert {row for row in range(-1, layout.num_rows + 20) if layout.has_row(row)} == rows


def test_parts_of_whole_shards_are_as_if_they_came_at_once():
    assert RowLayout.of(10, (20, 3)) == RowLayout.of(10, (23,)) == RowLayout.of(10, (10, 10, 3))
    assert RowLayout.of(10, (23, 7)) != RowLayout.of(10, (30,))


def corpus(*states: CorpusState) -> Corpus:
    now = states[-1]
    return Corpus(
        name="n",
        listing_id="l",
        shard_size=10,
        resize=None,
        max_pixels=9,
        skipped=0,
        history=states[:-1],
        **now.__dict__,
    )


FIRST = CorpusState(corpus_id="a", num_samples=23, num_shards=3)
MENDED = CorpusState(corpus_id="b", num_samples=23, num_shards=3, mended=(4, 22), replaced=(22,))
GROWN = CorpusState(corpus_id="c", num_samples=30, num_shards=4)
AGAIN = CorpusState(corpus_id="d", num_samples=30, num_shards=4, mended=(22, 31), replaced=(22,))


def test_a_corpus_keeps_the_states_that_it_was_in():
    now = corpus(FIRST, MENDED, GROWN, AGAIN)
    written = now.to_bytes()
    assert json.loads(written)["history"] == [
        {"corpus_id": "a", "num_samples": 23, "num_shards": 3},
        {"corpus_id": "b", "num_samples": 23, "num_shards": 3, "mended": [4, 22], "replaced": [22]},
        {"corpus_id": "c", "num_samples": 30, "num_shards": 4},
    ]
    assert json.loads(written)["schema_version"] == 2
    assert Corpus.from_bytes(written, "here") == now
    assert now.layout.parts == (23, 7)
    assert [now.rows(shard) for shard in range(4)] == [range(10), range(10, 20), range(20, 23), range(30, 37)]
    assert now.num_rows == 37
    assert [state.ledger(number) for number, state in enumerate(now.states, 1)] == [
        "shard",
        "retry-failed.2",
        "shard.3",
        "retry-failed.4",
    ]
    then = now.as_of("b")
    assert then == corpus(FIRST, MENDED)
    assert (then.num_rows, now.as_of("a"), now.as_of("d"), now.as_of("e")) == (23, corpus(FIRST), now, None)


def test_a_row_that_was_mended_twice_had_no_image_before():
    assert changed_rows([MENDED, GROWN, AGAIN]) == ({4, 22, 31}, {22})
    first = replace(MENDED, replaced=())
    assert changed_rows([first, AGAIN]) == ({4, 22, 31}, set())


def test_a_corpus_without_a_history_has_no_field_for_it():
    fields = json.loads(corpus(FIRST).to_bytes())
    assert fields["schema_version"] == 1
    assert not {"history", "mended", "replaced", "parts", "layout"} & set(fields)


@pytest.mark.parametrize(
    "states",
    [
        (
            FIRST,
            replace(GROWN, num_shards=3),
        ),  # seven more samples fit behind the last three, but a part begins with a shard
        (FIRST, replace(GROWN, num_samples=34, num_shards=4)),
        (GROWN, FIRST),
        (FIRST, replace(FIRST, corpus_id="b")),
        (FIRST, replace(GROWN, mended=(4,))),
    ],
)
def test_impossible_histories_are_refused(states):
    with pytest.raises(DamagedError) as caught:
        Corpus.from_bytes(corpus(*states).to_bytes(), "here")
    assert (caught.value.code, caught.value.where) == ("corpus-file-malformed", "here")


def make_store(folder, parts: tuple[int, ...], chunk: tuple[int, ...] | None) -> tuple[zarr.Group, StoreSpec]:
    targets = (
        TargetSpec(name="logits", axes=("sample", "view", "class"), shape=(3,)),
        TargetSpec(name="tokens", axes=("sample", "view", "token", "channel"), shape=(2, 3), chunk=chunk),
    )
    spec = StoreSpec(
        num_samples=sum(parts), shard_size=4, num_views=2, targets=targets, encoding=ENCODINGS["fp16"], parts=parts
    )
    root = open_root(str(folder), mode="a")
    create_arrays(root, StoreDescription(spec=spec, fingerprint={}, views={}, teacher={}, shards="s"))
    return root, spec


def block_of(spec: StoreSpec, shard: int) -> TargetBlock:
    rng = np.random.default_rng(shard)
    count = len(range(*spec.rows(shard).indices(spec.num_rows)))
    return TargetBlock(
        keys=[f"{shard:02d}{i:030d}" for i in range(count)],
        valid=np.ones(count, bool),
        view_params=no_views(count, 2),
        targets={
            "logits": rng.normal(size=(count, 2, 3)).astype(np.float32),
            "tokens": rng.normal(size=(count, 2, 2, 3)).astype(np.float16).astype(np.float32),
        },
    )


@pytest.mark.parametrize("chunk", [(4, 1, 2, 3), (2, 1, 2, 3), (1, 1, 1, 3)])
def test_a_short_shard_in_the_middle_is_written_and_read_like_any_other(tmp_path, chunk):
    root, spec = make_store(tmp_path / "s", (7, 3, 4), chunk)
    assert (spec.version, spec.num_rows, root["keys"].shape, root["logits"].chunks[0]) == (3, 16, (16, 32), 4)
    written = {shard: write_block(root, spec, shard, block_of(spec, shard)) for shard in (1, 0, 3, 2)}
    assert all((tmp_path / "s" / path).exists() for paths in written.values() for path in paths)
    assert len({path for paths in written.values() for path in paths}) == sum(map(len, written.values()))
    again = StoreDescription.read(open_root(str(tmp_path / "s")), "here").spec
    assert again.layout == spec.layout
    for shard in range(4):
        found = read_block(root, again, shard)
        assert found.keys == block_of(spec, shard).keys
        np.testing.assert_array_equal(found.targets["tokens"], block_of(spec, shard).targets["tokens"])
        np.testing.assert_allclose(found.targets["logits"], block_of(spec, shard).targets["logits"], atol=2e-3)
    # Rows behind the samples of a short shard are nobody's.
    assert not root["valid"][7]
    assert not root["keys"][7].any()
    assert np.isnan(np.asarray(root["tokens"][7])).all()


@pytest.mark.parametrize("chunk", [(4, 1, 2, 3), (2, 1, 2, 3)])
def test_what_lies_in_the_rows_behind_a_short_shard_does_not_matter(tmp_path, chunk):
    """A damaged chunk is written anew without being read, and its bytes are those of the array's last, short one."""
    for folder, parts in (("middle", (6, 4)), ("last", (6,))):
        root, spec = make_store(tmp_path / folder, parts, chunk)
        paths = write_block(root, spec, 1, block_of(spec, 1))
        if folder == "middle":
            for path in paths:
                (tmp_path / folder / path).write_bytes(b"no chunk")
            assert write_block(root, spec, 1, block_of(spec, 1)) == paths
    for path in paths:
        assert (tmp_path / "middle" / path).read_bytes() == (tmp_path / "last" / path).read_bytes(), path
    if chunk[0] == 2:
        assert not (tmp_path / "middle/tokens/c/3/0/0/0").exists()


def test_a_store_in_one_part_is_as_before(tmp_path):
    _, spec = make_store(tmp_path / "s", (8,), None)
    attributes = json.loads((tmp_path / "s" / "zarr.json").read_bytes())["attributes"]
    assert attributes["teachonce"]["schema_version"] == spec.version == 2
    assert "parts" not in attributes["cache"]["spec"]
    root, spec = make_store(tmp_path / "whole", (4, 4), None)  # as if they had come at once
    assert "parts" not in root.attrs["cache"]["spec"]


def test_equal_rows_are_equal_specs(tmp_path):
    specs = [make_store(tmp_path / str(len(parts)), parts, None)[1] for parts in ((9,), (4, 5), (4, 4, 1))]
    assert specs[0] == specs[1] == specs[2] == replace(specs[0], parts=(9,))
    assert replace(specs[0], num_samples=11).num_rows == 11


def test_parts_that_are_not_the_samples_are_refused(tmp_path):
    root, _ = make_store(tmp_path / "s", (6, 4), None)
    fields: Any = root.attrs.asdict()["cache"]
    fields["spec"] = {**fields["spec"], "parts": [6, 5]}
    fields.pop("seal")
    open_root(str(tmp_path / "s"), mode="a").attrs["cache"] = fields
    with pytest.raises(DamagedError) as caught:
        StoreDescription.read(open_root(str(tmp_path / "s")), "here")
    assert str(caught.value) == (
        "not a description of targets: here/zarr.json: expected parts of 10 samples together, found 11. "
        "Next: restore zarr.json from a copy, or run `teachonce cache` with another --out"
    )
