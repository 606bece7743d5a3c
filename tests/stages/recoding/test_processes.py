"""`teachonce recode` in processes of its own: on Ray, and killed with SIGKILL."""

from __future__ import annotations

from pathlib import Path

import pytest

DIES = """
import os, signal, sys
from teachonce.cli import main
from teachonce.pipeline.ledger import Ledger
left, commit = int(sys.argv.pop(1)), Ledger.commit
def dies(self, receipt, seconds):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    commit(self, receipt, seconds)
Ledger.commit = dies
main()
"""


def arrays(out: Path) -> dict[str, bytes]:
    """Every chunk and receipt, and what the store says of itself."""
    found = {f.relative_to(out).as_posix(): f.read_bytes() for f in out.rglob("*") if f.is_file()}
    return {name: data for name, data in found.items() if "/c/" in name or "/receipts/" in name or name == "zarr.json"}


@pytest.fixture
def run(python, taught_store):
    def one(out: Path, *words: object, dies_at: int | None = None) -> str:
        command = [
            "recode",
            taught_store.location,
            "--encoding",
            "fp16",
            "--views",
            "2,0",
            "--out",
            out,
            "--json",
            *words,
        ]
        start = ["-m", "teachonce"] if dies_at is None else ["-c", DIES, dies_at]
        process = python.start("-W", "ignore", *start, *command)
        assert process.wait() == (0 if dies_at is None else -9), process.stderr
        return process.stdout

    return one


@pytest.mark.slow
def test_killed_and_begun_again_it_ends_with_the_same_bytes(run, tmp_path):
    run(tmp_path / "whole.zarr", "--executor", "serial")
    for done in (0, 3, 0):  # two units are written at once
        run(tmp_path / "out.zarr", "--executor", "serial", dies_at=done)
    receipts = list((tmp_path / "out.zarr/ledger/cache/receipts").glob("*.json"))
    assert 2 <= len(receipts) < 4
    before = {file: file.stat().st_mtime_ns for file in receipts}
    run(tmp_path / "out.zarr", "--executor", "serial")
    assert {file: file.stat().st_mtime_ns for file in receipts} == before  # what was done is not done again
    assert arrays(tmp_path / "out.zarr") == arrays(tmp_path / "whole.zarr")


@pytest.mark.ray
def test_on_ray_it_writes_the_same_bytes(run, cluster, tmp_path):
    run(tmp_path / "ray.zarr", "--ray-address", cluster.address, "--workers", 2)
    run(tmp_path / "serial.zarr", "--executor", "serial")
    assert arrays(tmp_path / "ray.zarr") == arrays(tmp_path / "serial.zarr")
