"""Two real ranks, for the tests of training together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

JOBS = Path(__file__).parent / "rank_jobs.py"


@pytest.fixture(scope="session")
def together() -> Iterator[Callable[..., list[int]]]:
    """`together(do, folder, …)`: a job of rank_jobs.py on two ranks; their exit codes."""
    # DistributedDataParallel warns on stderr of weights that turn out to have a gradient after all.
    environment = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(JOBS)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    to, back = process.stdin, process.stdout

    def do(name: str, folder: Path, **options: Any) -> list[int]:
        folder.mkdir(exist_ok=True)
        to.write(json.dumps({"do": name, "folder": str(folder), **options}) + "\n")
        return list(json.loads(back.readline()))

    yield do
    to.close()
    process.wait(30)
    back.close()
