"""The order of an epoch: complete, frozen, reachable anywhere, and cheap for corpora of any size."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teachonce.stages.pairs.order import EpochOrder, permutation, steps_per_epoch, window_shards
from teachonce.storage_schemas.errors import InputError


def order(rows, *, seed=0, epoch=0, window=4):
    return EpochOrder(seed=seed, epoch=epoch, rows_per_shard=np.array(rows, np.int64), window=window)


def pairs(samples):
    return list(zip(*(part.tolist() for part in samples), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(any),
    window=st.integers(1, 7),
    seed=st.integers(0, 5),
    batch=st.integers(1, 13),
)
def test_every_row_comes_once_however_the_epoch_is_cut(rows, window, seed, batch):
    whole = order(rows, seed=seed, window=window)
    expected = {(shard, position) for shard, count in enumerate(rows) for position in range(count)}
    everything = pairs(whole.samples(0, whole.num_samples))
    assert len(everything) == whole.num_samples == sum(rows)
    assert set(everything) == expected
    for start in range(0, sum(rows), batch):
        stop = min(start + batch, sum(rows))
        fresh = order(rows, seed=seed, window=window)
        assert pairs(fresh.samples(start, stop)) == everything[start:stop]
        assert {shard for shard, _ in everything[start:stop]} <= fresh.open_shards(start, stop)


def test_a_window_mixes_a_few_shards_and_no_more():
    mixed = order([10] * 12, window=3)
    for start in range(0, 120, 30):
        assert len(set(mixed.samples(start, start + 30)[0].tolist())) == 3
        assert len(mixed.open_shards(start, start + 30)) == 3
    assert len(mixed.open_shards(25, 35)) == 6


def test_seed_epoch_and_counts_decide_and_nothing_else():
    first = pairs(order([5, 6, 7]).samples(0, 18))
    np.random.seed(1)
    assert pairs(order([5, 6, 7]).samples(0, 18)) == first
    assert pairs(order([5, 6, 7], epoch=1).samples(0, 18)) != first
    assert pairs(order([5, 6, 7], seed=1).samples(0, 18)) != first


def test_a_permutation_is_the_rank_of_philox_numbers():
    key = int.from_bytes(hashlib.blake2b(b"shards/0/0", digest_size=16).digest(), "little")
    numbers = np.random.Philox(key=key).random_raw(9).tolist()
    assert permutation(9, "shards/0/0").tolist() == sorted(range(9), key=numbers.__getitem__)


def test_the_order_is_frozen():
    # Resumed runs and published results depend on these numbers: they must never change.
    assert permutation(10, "shards/0/0").tolist() == [3, 9, 6, 0, 5, 4, 8, 1, 7, 2]
    assert pairs(order([3, 0, 2, 4], seed=7, epoch=2, window=2).samples(0, 9)) == [
        (3, 0),
        (3, 1),
        (3, 3),
        (2, 0),
        (2, 1),
        (3, 2),
        (0, 2),
        (0, 1),
        (0, 0),
    ]


def test_shuffling_is_uniform_over_places():
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        shards, positions = order([2, 2, 2], epoch=epoch, window=3).samples(0, 6)
        counts[np.arange(6), shards * 2 + positions] += 1
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert chi_square < 52  # 25 degrees of freedom, p = 0.001


def test_ten_million_rows_cost_one_window():
    rows = np.full(10_000, 1000, np.int64)
    tracemalloc.start()
    try:
        whole = EpochOrder(seed=0, epoch=0, rows_per_shard=rows, window=window_shards(rows))
        shards, positions = whole.samples(9_000_000, 9_000_256)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(shards) == len(positions) == 256
    assert len(set(shards.tolist())) == 16
    assert peak < 4 << 20


@pytest.mark.parametrize(
    ("rows", "shards"), [([1000] * 50, 16), ([10_000] * 50, 4), ([20] * 50, 819), ([0], 16_384)]
)
def test_windows_hold_a_bounded_number_of_rows(rows, shards):
    assert window_shards(np.array(rows, np.int64)) == shards


def test_steps_come_from_known_counts():
    assert steps_per_epoch(10, 4, drop_last=False) == 3
    assert steps_per_epoch(10, 4, drop_last=True) == 2
    assert steps_per_epoch(8, 4, drop_last=False) == steps_per_epoch(8, 4, drop_last=True) == 2
    assert steps_per_epoch(3, 4, drop_last=False) == 1


@pytest.mark.parametrize(
    ("samples", "batch", "text"),
    [
        (0, 4, "no usable samples. Next: see which images could not be used with `teachonce status`"),
        (
            3, 4,
            "a batch is larger than the corpus, and a last, shorter batch is dropped: --batch-size: "
            "expected at most 3, found 4",
        ),
        (3, 0, "impossible batch size: --batch-size: found 0"),
    ],
)  # fmt: skip
def test_no_steps_is_an_error(samples, batch, text):
    with pytest.raises(InputError) as error:
        steps_per_epoch(samples, batch, drop_last=True)
    assert str(error.value) == text


def test_samples_beyond_the_epoch_are_refused():
    with pytest.raises(IndexError, match="samples 8 to 11 of 10"):
        order([5, 5]).samples(8, 11)
