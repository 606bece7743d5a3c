"""A Ray that starts on a busy machine: its node may take longer to be known than Ray itself would wait."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from teachonce.pipeline.executors import connection


@pytest.fixture
def known_at(monkeypatch) -> Callable[[int], list[tuple[Any, ...]]]:
    """Ray's question for a node is answered the n-th time that it is asked. What was asked for is in the list."""
    import ray  # noqa: F401

    def set_up(number: int) -> list[tuple[Any, ...]]:
        asked: list[tuple[Any, ...]] = []

        def get_node(*args: Any) -> str:
            asked.append(args)
            if len(asked) < number:
                raise RuntimeError("RPC error: Deadline Exceeded")
            return "the node"

        monkeypatch.setattr(sys.modules["ray._private.services"], "get_node", get_node)
        return asked

    return set_up


def test_it_is_asked_for_until_it_is_there(known_at):
    asked = known_at(3)
    services = sys.modules["ray._private.services"]
    own = services.get_node
    with connection._patience():
        assert services.get_node("127.0.0.1:1", "its id") == "the node"
    assert asked == [("127.0.0.1:1", "its id")] * 3
    assert services.get_node is own


def test_but_not_for_ever(known_at, monkeypatch):
    asked = known_at(2)
    monkeypatch.setattr(connection, "_NODE_SECONDS", -1.0)
    with connection._patience(), pytest.raises(RuntimeError, match="Deadline Exceeded"):
        sys.modules["ray._private.services"].get_node("127.0.0.1:1", "its id")
    assert len(asked) == 1
