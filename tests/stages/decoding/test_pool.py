"""Where images are decoded: what the user chose, else what the machine has to spare."""

from __future__ import annotations

from dataclasses import replace

import pytest
from teachonce.pipeline import cores
from teachonce.stages.decoding import pool
from teachonce.stages.decoding.pool import decode_workers, make_pool
from teachonce.stages.decoding.threads import Threads
from teachonce.stages.models.compute import Compute


@pytest.mark.parametrize(
    ("chosen", "device", "threads", "least", "expected"),
    [
        (None, "cpu", 4, 0, 12),
        (None, "cpu", 16, 0, 0),
        (None, "cpu", 20, 0, 0),
        (None, "cpu", 16, 2, 2),
        (None, "cpu", 15, 2, 2),
        (None, "cuda", 4, 2, 16),
        (0, "cuda", 4, 2, 0),
        (0, "cpu", 16, 2, 0),
        (40, "cpu", 4, 0, 40),
    ],
)
def test_processes_follow_the_cores(monkeypatch, chosen, device, threads, least, expected):
    monkeypatch.setattr(pool, "usable_cores", lambda: 16)
    assert decode_workers(chosen, device=device, threads=threads, least=least) == expected


def test_processes_on_one_machine_share_its_cores(monkeypatch):
    """As an executor says that they do."""
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(cores, "_quota", lambda: None)
    cores.assign_cores(4)
    try:
        assert decode_workers(None, device="cuda", threads=2) == 4
        assert decode_workers(None, device="cpu", threads=2) == 2
    finally:
        cores.assign_cores(None)
    assert decode_workers(None, device="cuda", threads=2) == 16


def test_no_process_is_started_for_none():
    compute = Compute(device="cpu", precision="fp32", threads=3, decode_workers=0)
    here = compute.pool("no_such_module", least=2)
    assert isinstance(here, Threads)
    assert here.ahead == 6
    here.close()
    alone = make_pool(0, 0)
    assert alone.ahead == 0
    alone.close()
    processes = replace(compute, decode_workers=1).pool()
    assert not isinstance(processes, Threads)
    processes.close()
