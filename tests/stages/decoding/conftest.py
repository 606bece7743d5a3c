"""Pools of every kind, and works that their processes can import."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from teachonce.stages.decoding.processes import Processes

HERE = str(Path(__file__).parent)


@pytest.fixture(scope="session")
def works() -> Iterator[ModuleType]:
    """The module decoding_works.py, which processes find where this one does."""
    sys.path.insert(0, HERE)
    yield importlib.import_module("decoding_works")
    sys.path.remove(HERE)


@pytest.fixture(scope="module")
def processes(works) -> Iterator[Processes]:
    """Two processes, for all tests that leave them whole."""
    pool = Processes(2, ["decoding_works"])
    yield pool
    pool.close()


@pytest.fixture
def until() -> Callable[[Callable[[], bool], str], None]:
    """`until(condition, "what is waited for")`: patience with other processes."""

    def wait(condition: Callable[[], bool], what: str) -> None:
        patience = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < patience, what
            time.sleep(0.005)

    return wait
