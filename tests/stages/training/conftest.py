"""Two real ranks, for the tests of training together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

JOBS = Path(__file__).parent / "rank_jobs.py"


@pytest.fixture(scope="session")
def together(python) -> Iterator[Callable[..., list[int]]]:
    """`together(do, folder, …)`: a job of rank_jobs.py on two ranks; their exit codes."""
    jobs = python.jobs("-W", "ignore", JOBS)

    def do(name: str, folder: Path, **options: Any) -> list[int]:
        folder.mkdir(exist_ok=True)
        return list(jobs.do({"do": name, "folder": str(folder), **options}))

    yield do
    jobs.close()
