"""The order of an epoch: complete, frozen, reachable anywhere, and cheap for corpora of any size."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teachonce.stages.pairs.order import EpochOrder, Spans, check_batch, permutation, window_shards
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


@pytest.mark.parametrize(("rows", "shards"), [([1000] * 50, 16), ([10_000] * 50, 4), ([20] * 50, 819), ([0], 16_384)])
def test_windows_hold_a_bounded_number_of_rows(rows, shards):
    assert window_shards(np.array(rows, np.int64)) == shards


def test_steps_come_from_known_counts():
    def spans(samples, **options):
        return list(Spans(num_samples=samples, batch_size=4, **options))

    assert spans(10, drop_last=False) == [(0, 4), (4, 8), (8, 10)]
    assert spans(10) == [(0, 4), (4, 8)]
    assert spans(8) == spans(8, drop_last=False) == [(0, 4), (4, 8)]
    assert spans(3, drop_last=False) == [(0, 3)]
    assert spans(10, first=1, drop_last=False) == [(1, 5), (5, 9), (9, 10)]
    assert spans(10, first=7) == spans(10, first=12) == []


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 60), share=st.integers(1, 5), world=st.integers(1, 4), first=st.integers(0, 70))
def test_ranks_share_every_batch_equally(samples, share, world, first):
    """Whatever the number of ranks: as many steps for each, and together the batches of one."""
    alone = [range(*span) for span in Spans(num_samples=samples, batch_size=share * world, first=first)]
    ranks = [
        Spans(num_samples=samples, batch_size=share * world, first=first, rank=rank, world_size=world)
        for rank in range(world)
    ]
    assert {len(rank) for rank in ranks} == {len(alone)}
    together = [[i for span in step for i in range(*span)] for step in zip(*ranks, strict=True)]
    assert together == [list(step) for step in alone]
    assert all(stop - start == share for rank in ranks for start, stop in rank)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            (0, 4, 1, True),
            "no usable samples. Next: see which images could not be used with `teachonce status`",
        ),
        (
            (3, 4, 1, True),
            "a batch is larger than the corpus, and a last, shorter batch is dropped: --batch-size: "
            "expected at most 3, found 4",
        ),
        ((3, 0, 1, True), "impossible batch size: --batch-size: found 0"),
        (
            (9, 4, 3, True),
            "a batch cannot be shared out equally among the workers: --batch-size: expected a multiple of 3, found 4",
        ),
        (
            (9, 4, 2, False),
            "workers need equal batches, so a last, shorter batch must be dropped: drop_last: expected True, "
            "found False",
        ),
    ],
)
def test_impossible_batches_are_an_error(given, text):
    samples, batch, world, drop_last = given
    with pytest.raises(InputError) as error:
        check_batch(samples, batch, drop_last=drop_last, world_size=world)
    assert str(error.value) == text


def test_samples_beyond_the_epoch_are_refused():
    with pytest.raises(IndexError, match="samples 8 to 11 of 10"):
        order([5, 5]).samples(8, 11)
