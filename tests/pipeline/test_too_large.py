"""What does not fit in a worker's memory is one clear line, and no bug."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from teachonce.pipeline.worker import Worker
from teachonce.storage_schemas.errors import WorkerError


def worker(error: Exception) -> Worker:
    def fail() -> Any:
        raise error

    stage: Any = SimpleNamespace(name="cache", open=fail)
    ledger: Any = None
    return Worker(stage, ledger)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (MemoryError(), "MemoryError"),
        (RuntimeError("[alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 9 bytes\nmore"), "9 bytes"),
        (RuntimeError("CUDA out of memory. Tried to allocate 9 bytes."), "Tried to allocate 9 bytes."),
    ],
)
def test_a_teacher_that_is_larger_than_memory(error, found):
    with pytest.raises(WorkerError) as caught:
        worker(error).open()
    assert caught.value.code == "worker-memory-short"
    assert str(caught.value).startswith("what `teachonce cache` loads does not fit in a worker's memory: process ")
    assert f"{found}. Next: use a machine with more memory" in str(caught.value)


def test_another_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match="shapes differ"):
        worker(RuntimeError("shapes differ")).open()
