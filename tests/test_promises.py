"""docs/promises.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def test_every_promise_has_tests_that_exist():
    lines = [line for line in (CHECKOUT / "docs/promises.md").read_text().splitlines() if line.startswith("| **")]
    assert len(lines) == 7
    for line in lines:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", line)
        assert named, line
        for path, name in named:
            functions = ast.walk(ast.parse((CHECKOUT / path).read_text()))
            assert name in {f.name for f in functions if isinstance(f, ast.FunctionDef)}, f"{path}::{name}"
