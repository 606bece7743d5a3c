"""Workers on a Ray that starts with the command: what it listens on, and what they report of units, warnings and their own ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid

import pytest

#: Units whose samples wait until the driver has heard of the ones before. One kills its process half-way, once.
STAGE = """
import os, pathlib, signal, sys, time, warnings
from dataclasses import dataclass, field
import numpy as np
from teachonce.pipeline.types import Resources, Unit
from teachonce.storage_schemas.fingerprint import Fingerprint
from teachonce.storage_schemas.receipt import Receipt

SAMPLES = 4

@dataclass(frozen=True)
class Slow:
    folder: pathlib.Path
    vectors: np.ndarray
    name = "slow"
    fingerprint = Fingerprint(fields={})
    resources = Resources(units_at_once=1)

    def plan(self):
        return (Unit(key=key, rows=SAMPLES) for key in ("calm", "killed"))

    def open(self):
        assert float(self.vectors.sum()) == 1_000_000
        return self.run

    def run(self, unit, timer):
        warnings.warn("odd pixels")
        print("a line of a library", file=sys.stderr)
        for sample in range(1, SAMPLES + 1):
            timer.advance(1)
            while sample == 1 and not (self.folder / "seen").exists():
                (self.folder / f"here-{unit.key}").write_text(str(os.getpid()))
                time.sleep(0.02)
            while not (self.folder / f"heard-{unit.key}-{sample}").exists():
                time.sleep(0.02)
            if unit.key == "killed" and sample == 2 and not (self.folder / "died").exists():
                (self.folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return Receipt(key=unit.key, outputs=(), rows=SAMPLES, invalid_rows=(), digest="", fingerprint=self.fingerprint.digest)

if __name__ == "__main__":
    from slow_stage import Slow
    from teachonce.pipeline import board, runner
    from teachonce.pipeline.executors.ray import RayExecutor
    from teachonce.pipeline.storage import Location
    folder = pathlib.Path(sys.argv[1])

    class Told(board.Board):
        def at(self, key, samples):
            super().at(key, samples)
            (folder / f"heard-{key}-{samples}").touch()
            with (folder / "told").open("a") as file:
                print(key, samples, self._done + sum(self._at.values()), file=file)

    runner.Board = Told
    stage = Slow(folder, np.ones(1_000_000))
    print(runner.run_stage(stage, Location.of(folder / "out"), RayExecutor(workers=2)).rows)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_of_our_own_listens_on_loopback_only_and_its_workers_report(listening, tmp_path):
    (tmp_path / "slow_stage.py").write_text(STAGE)
    mark = {"TEACHONCE_TEST": uuid.uuid4().hex}
    environment = os.environ | mark | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)  # of a Ray that this process may have joined
    words = [sys.executable, "slow_stage.py", str(tmp_path)]
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        try:
            while len(here := [file for file in tmp_path.glob("here-*") if file.read_text()]) < 2:
                assert driver.poll() is None, driver.communicate()
                time.sleep(0.05)
            workers = {int(file.read_text()) for file in here}
            assert len(workers) == 2
            listening.check_loopback_only(driver.pid, "=".join(*mark.items()), workers)
        finally:
            (tmp_path / "seen").touch()
            stdout, stderr = driver.communicate()
    assert stdout == "8\n", stderr
    told = [line.split() for line in (tmp_path / "told").read_text().splitlines()]
    seen = {key: [int(n) for k, n, _ in told if k == key] for key in ("calm", "killed")}
    assert set(range(1, 5)) <= set(seen["calm"])
    assert seen["calm"] == sorted(seen["calm"])
    assert 2 in seen["killed"]
    assert max(seen["killed"]) == 4
    assert all(0 <= int(total) <= 8 for _, _, total in told)
    lines = stderr.splitlines()
    begun = [line for line in lines if line.startswith("slow: a worker ended unforeseen (process ")]
    assert len(begun) == 1, stderr
    assert begun[0].endswith("; its work was begun anew")
    lines.remove(begun[0])
    # Where it takes long, also what starts, and counts.
    lines = [
        line for line in lines if not line.startswith(("slow: starting", "slow: loading")) and "/8 img" not in line
    ]
    assert lines == [
        "slow: UserWarning: odd pixels (slow_stage.py, line 27)",
        "slow: a line of a library",
    ]
