"""What tests of any folder may use."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent

# Tests side by side share the cores. It counts before torch is imported.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = len(os.sched_getaffinity(0)) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))


def _load(name: str, path: Path) -> ModuleType:
    """A module beside the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def miniature() -> ModuleType:
    """The module stages/corpora/coop/miniature.py: `miniature.build(root, "oxford_pets", per_class={"train": 3, …})`."""
    return _load("miniature", HERE / "stages" / "corpora" / "coop" / "miniature.py")


@pytest.fixture(scope="session")
def published() -> ModuleType:
    """The module published.py: towers, losses and schedule of PromptSRC and PromptKD from their descriptions."""
    return _load("published", HERE / "published.py")


@pytest.fixture(scope="session")
def clip_kinds() -> ModuleType:
    """The module stages/teachers/clip_kinds.py: tiny configurations of every kind in open_clip's registry."""
    return _load("clip_kinds", HERE / "stages" / "teachers" / "clip_kinds.py")


@pytest.fixture(scope="session")
def stage_inputs() -> ModuleType:
    """The module stages/conftest.py, for tests beside that folder: pictures, shards of them, stores with known numbers."""
    return _load("stage_inputs", HERE / "stages" / "conftest.py")


@pytest.fixture(scope="session")
def load_module() -> Callable[[str, Path], ModuleType]:
    """`load_module(name, path)`: a script of the checkout as a module."""
    return _load


@pytest.fixture(scope="session")
def python() -> Iterator[Any]:
    """`python.run("-m", "teachonce", "shard", …)`, `python.start(…)`: programs without the seconds of import; see warm_python.py."""
    warm = _load("warm_python", HERE / "warm_python.py").WarmPython()
    yield warm
    warm.close()


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster of two CPUs on this machine.

    Attributes:
        address: for `--ray-address`.
        pid: the process that all of its processes stand below.
    """

    address: str
    pid: int


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One Ray for all tests that need any; those about a Ray that a command starts, or that end it, start their own."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [
            Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=false",
            "--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}",
        ]  # fmt: skip
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        with (Path(folder) / "printed").open("w+") as printed:
            process = subprocess.Popen(
                command, env=environment, stdout=printed, stderr=printed, start_new_session=True
            )
            while "Ray runtime started" not in (Path(folder) / "printed").read_text():
                assert process.poll() is None, (Path(folder) / "printed").read_text()
                time.sleep(0.05)
            yield Cluster(f"127.0.0.1:{port}", process.pid)
            process.terminate()
            process.wait()
