"""Groups of rows drawn evenly, with replacement: as a plain computation does, wherever the order is entered; even; and cheap."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teachonce.stages.pairs.balanced_order import BalancedOrder, balanced_window
from teachonce.stages.pairs.order import permutation


def order(rows, *, seed=0, epoch=0, samples=24, window=2):
    return BalancedOrder(seed=seed, epoch=epoch, rows_SG=np.array(rows, np.int64), num_samples=samples, window=window)


def pairs(samples):
    return list(zip(*(part.tolist() for part in samples), strict=True))


def plain_draws(rows, group, count, *, seed, window):
    """The first draws of a group: (shard, position among the shard's rows, group after group), one after another."""
    found: list[tuple[int, int]] = []
    begin = number = 0
    while len(found) < count:
        shards = [s for s in permutation(len(rows), f"balanced shards/{seed}/{number}").tolist() if rows[s][group]]
        for first in range(0, len(shards), window):
            own = [(s, sum(rows[s][:group]) + i) for s in shards[first : first + window] for i in range(rows[s][group])]
            key = hashlib.blake2b(f"balanced/{seed}/{group}/{begin}".encode(), digest_size=16).digest()
            numbers = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(len(own)).tolist()
            found += [own[n % len(own)] for n in numbers]
            begin += len(own)
        number += 1
    return found[:count]


ROWS = (
    st.integers(1, 3)
    .flatmap(
        lambda groups: st.lists(st.lists(st.integers(0, 5), min_size=groups, max_size=groups), min_size=1, max_size=9)
    )
    .filter(lambda rows: all(map(sum, zip(*rows, strict=True))))
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, each=st.integers(1, 4), steps=st.integers(1, 6), window=st.integers(1, 4), cut=st.integers(1, 9))
def test_every_step_draws_equally_many_of_each_group_as_written_out(rows, each, steps, window, cut):
    groups, epochs = len(rows[0]), 3
    samples = each * groups * steps
    draws = [plain_draws(rows, g, epochs * each * steps, seed=5, window=window) for g in range(groups)]
    expected = [draws[j % groups][j // groups] for j in range(epochs * samples)]
    first = order(rows, seed=5, samples=samples, window=window)
    for epoch in range(epochs):
        for start in range(0, samples, cut):
            stop = min(start + cut, samples)
            fresh = first.at(epoch)  # entered here, without what lies before
            found = pairs(fresh.samples(start, stop))
            assert found == expected[epoch * samples + start : epoch * samples + stop]
            assert {shard for shard, _ in found} <= fresh.open_shards(start, stop)
            for sample, (shard, _) in enumerate(found, start):
                assert shard in set(fresh.coming(sample))


def test_the_order_is_frozen():
    # Resumed runs depend on these numbers: they must never change.
    rows = [[3, 1], [0, 2], [4, 0], [1, 1]]
    assert pairs(order(rows, seed=7, epoch=1, samples=12).samples(0, 12)) == [
        (0, 1),
        (1, 1),
        (0, 2),
        (3, 1),
        (0, 2),
        (1, 0),
        (0, 1),
        (1, 0),
        (3, 0),
        (3, 1),
        (3, 0),
        (0, 3),
    ]


def test_rows_of_a_group_are_equally_likely_whatever_their_shard():
    rows = [[9, 1], [1, 0], [2, 3], [4, 0], [4, 2]]
    found = Counter(pairs(order(rows, samples=80_000).samples(0, 80_000)))
    for group, total in enumerate([20, 6]):
        own = {(s, sum(rows[s][:group]) + i) for s in range(5) for i in range(rows[s][group])}
        counts = np.array([found[row] for row in sorted(own)])
        assert counts.sum() == 40_000
        expected = 40_000 / total
        # Windows give exactly as many draws as they have rows: the deviations are no larger than those of free draws.
        assert ((counts - expected) ** 2 / expected).sum() < 2.2 * total


def test_in_one_window_draws_are_independent():
    """Repeats among neighbours are as frequent as by chance, within a pass over the rows and across its end."""
    drawn = pairs(order([[5], [5]], samples=40_000, window=2).samples(0, 40_000))
    for distance in (1, 2, 9):
        same = sum(a == b for a, b in zip(drawn, drawn[distance:], strict=False))
        assert abs(same / len(drawn) - 0.1) < 0.008


def test_ten_million_rows_cost_a_window_of_each_group():
    rows = np.full((10_000, 4), 250, np.int64)
    tracemalloc.start()
    try:
        whole = BalancedOrder(seed=0, epoch=3, rows_SG=rows, num_samples=9_600_000, window=16)
        shards, positions = whole.samples(9_000_000, 9_000_096)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(shards) == len(positions) == 96
    assert len(whole.open_shards(9_000_000, 9_000_096)) <= 4 * 16 * 2
    assert peak < 4 << 20


@pytest.mark.parametrize(
    ("shards", "rows", "groups", "window"),
    [(10, 1000, 4, 10), (65, 1000, 4, 65), (66, 1000, 4, 16), (120, 5000, 5, 4), (586, 1000, 5, 13)],
)
def test_windows_of_all_groups_hold_a_bounded_number_of_rows(shards, rows, groups, window):
    rows_SG = np.full((shards, groups), rows // groups, np.int64)
    assert balanced_window(rows_SG) == window


def test_a_place_changes_where_the_shards_that_come_do():
    rows = [[2, 0], [2, 2], [0, 2], [2, 2]]
    whole = order(rows, samples=40, window=1)
    for sample in range(39):
        if whole.place(sample) == whole.place(sample + 1):
            assert list(whole.coming(sample)) == list(whole.coming(sample + 1))
    assert len({whole.place(sample) for sample in range(40)}) > 5


def test_samples_beyond_the_epoch_are_refused():
    with pytest.raises(IndexError, match="samples 20 to 25 of 24"):
        order([[5, 5]]).samples(20, 25)
