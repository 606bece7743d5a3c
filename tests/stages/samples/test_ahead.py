"""Decoding ahead: in order, no further ahead than told, and nothing left running."""

from __future__ import annotations

import threading

import pytest
from teachonce.stages.corpora.images import BadImage
from teachonce.stages.samples.ahead import decoding_threads, in_order, prepare


def odd_is_bad(item: int) -> int:
    if item % 2:
        raise BadImage(f"{item} is odd")
    return 10 * item


def test_items_come_in_order_with_results_or_reasons():
    found = [(ready.item, ready.result, ready.reason) for ready in prepare(range(5), odd_is_bad, 3, 2)]
    assert found == [(0, 0, ""), (1, None, "1 is odd"), (2, 20, ""), (3, None, "3 is odd"), (4, 40, "")]


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_no_more_is_taken_than_told(ahead):
    taken = []

    def items():
        for item in range(10):
            taken.append(item)
            yield item

    for ready in prepare(items(), str, 2, ahead):
        assert len(taken) == min(10, ready.item + ahead + 1)


def test_errors_that_are_no_reasons_pass_through():
    def work(item):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(prepare(range(3), work, 1, 1))


def test_who_stops_waits_for_what_runs_and_gives_up_the_rest():
    started, go_on, done = threading.Event(), threading.Event(), []

    def work(item):
        if item == 1:
            started.set()
            go_on.wait()
        done.append(item)
        return item

    with decoding_threads(1) as pool:
        readies = in_order(range(9), work, pool, 5)
        assert next(readies).item == 0
        started.wait()
        threading.Timer(0.05, go_on.set).start()
        readies.close()
        assert done == [0, 1]  # the one that ran has ended; of the others none began
        assert [ready.result for ready in in_order([7, 8], work, pool, 5)] == [7, 8]
