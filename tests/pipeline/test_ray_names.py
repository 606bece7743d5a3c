"""What Ray shows of a run: names of actors and tasks, and counters, scraped from the endpoint of a real Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from teachonce.pipeline.executors import names

STAGE = """
import json, pathlib, sys, time, urllib.request
from dataclasses import dataclass
from teachonce.pipeline.types import Resources, Unit
from teachonce.storage_schemas.fingerprint import Fingerprint
from teachonce.storage_schemas.receipt import InvalidRow, Output, Receipt

@dataclass(frozen=True)
class Odd:
    name = "odd"
    fingerprint = Fingerprint(fields={})
    resources = Resources()

    def plan(self):
        return (Unit(key=f"00000{i}", rows=4) for i in range(5))

    def open(self):
        return self.run

    def run(self, unit, timer):
        import ray
        if unit.key == "000003":
            raise ValueError("odd")
        timer.add("write", 0.25)
        bad = (InvalidRow(row=0, path=f"{ray.get_runtime_context().get_actor_name()}|{ray.get_runtime_context().get_task_name()}", reason="empty file"),)
        return Receipt(key=unit.key, outputs=(Output(path="x", bytes=100, sha256=""),), rows=4, invalid_rows=bad, digest="", fingerprint=self.fingerprint.digest)

if __name__ == "__main__":
    from odd_stage import Odd
    from teachonce.pipeline.executors.ray import RayExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.pipeline.storage import Location
    from teachonce.storage_schemas.errors import UnitsFailed
    out, address = pathlib.Path(sys.argv[1]), sys.argv[2]
    try:
        run_stage(Odd(), Location.of(out), RayExecutor(workers=1, address=address or None), progress=False)
    except UnitsFailed:
        pass
    import ray
    names = [json.loads(file.read_text())["invalid_rows"][0]["path"] for file in sorted((out / "ledger/odd/receipts").glob("*.json"))]
    port, found = ray.nodes()[0]["MetricsExportPort"], []
    while "scrape" in sys.argv and not any("teachonce_seconds" in line for line in found):
        time.sleep(0.5)
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        found = [line for line in text.splitlines() if line.startswith("ray_teachonce")]
    print(json.dumps([names, found]))
"""


def run(tmp_path, address: str, *more: str) -> list[list[str]]:
    (tmp_path / "odd_stage.py").write_text(STAGE)
    variables = {
        "RAY_metrics_report_interval_ms": "500",
        "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        "RAY_AUTH_MODE": "disabled",
    }
    words = [sys.executable, "odd_stage.py", tmp_path / "out", address, *more]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.ray
@pytest.mark.slow
def test_actors_and_tasks_have_names_that_tell_what_they_do(tmp_path, cluster):
    assert run(tmp_path, cluster.address)[0] == [f"odd worker 1|odd 00000{i}" for i in (0, 1, 2, 4)]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("prometheus_client") is None, reason="Ray exports metrics where ray[default] is installed"
)
def test_counters_are_what_the_units_came_to(tmp_path):
    """On a Ray of its own: the endpoint of a shared one has what other tests counted."""
    values = {}
    for line in run(tmp_path, "", "scrape")[1]:
        name, _, rest = line.partition("{")
        tags = dict(part.split("=", 1) for part in rest.rpartition("}")[0].split(","))
        assert tags["stage"] == '"odd"'
        values[name, tags.get("state") or tags.get("kind")] = float(line.rpartition(" ")[2])
    assert values == {
        ("ray_teachonce_units_total", '"done"'): 4,
        ("ray_teachonce_units_total", '"failed"'): 1,
        ("ray_teachonce_samples_total", None): 16,
        ("ray_teachonce_invalid_samples_total", None): 4,
        ("ray_teachonce_bytes_written_total", None): 400,
        ("ray_teachonce_seconds_total", '"write"'): 1.0,
    }


def test_a_long_run_has_few_names():
    ray_names = names.RayNames("cache")
    found = [ray_names.unit(f"{i:06d}") for i in range(20_000)]
    assert found[:2] == ["cache 000000", "cache 000001"]
    assert found[-1] == "cache 019…"
    assert len(set(found)) == 1000 + 19
    assert [ray_names.worker(), ray_names.worker()] == ["cache worker 1", "cache worker 2"]
    assert ray_names.namespace != names.RayNames("cache").namespace
