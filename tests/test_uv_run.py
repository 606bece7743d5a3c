"""`uv run teachonce …`: Ray starts workers as it does without uv, and copies no working directory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

#: What Ray makes of a hook that is left on: minutes of workers that do not start.
SECONDS = 240

#: Of Ray, by major and minor number: from there on it copies the working folder of `uv run` unless it is told not to.
LOWEST_WITH_HOOK = (2, 47)


def uv() -> str:
    """The uv of the environment that runs the tests, else the machine's."""
    beside = Path(sys.prefix) / "bin" / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        pytest.skip("no uv on this machine")
    return found


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its session. Its sockets want a short path, and pytest's are long."""
    with tempfile.TemporaryDirectory(prefix="uv-run-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.ray
def test_shard_on_ray_under_uv_run(tmp_path: Path, ray_folder: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "UV_", "XDG_"))}
    environment |= {"VIRTUAL_ENV": sys.prefix, "RAY_TMPDIR": str(ray_folder), "PYTHONWARNINGS": "ignore"}
    # In a session of its own: uv, driver and Ray's helpers end together if it takes too long.
    process = subprocess.Popen(
        [uv(), "run", "--no-sync", "--offline", "teachonce", "shard", "images", "--workers", "1", "--out", "shards"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    assert (tmp_path / "shards" / "000000.tar").exists()
    (session,) = (path for path in (ray_folder / "ray").glob("session_2*") if path.is_dir())
    assert list((session / "runtime_resources" / "working_dir_files").iterdir()) == []


@pytest.mark.parametrize("module", ["ray", "ray_train"])
def test_the_hook_is_off_unless_the_user_wants_it(module: str) -> None:
    """Ray reads the setting as it is imported, so it must be there when an executor is."""
    code = f"""
import sys
import teachonce.pipeline.executors.{module}
assert "ray" not in sys.modules
import ray
print(getattr(ray._private.ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "none"))
"""
    plain = {n: v for n, v in os.environ.items() if n != "RAY_ENABLE_UV_RUN_RUNTIME_ENV"}
    for environment, expected in ((plain, "False"), (plain | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "1"}, "True")):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        # The hook of Ray 2.44, the lowest version, has to be asked for in another way: there is nothing to switch off.
        none = tuple(map(int, version("ray").split(".")[:2])) < LOWEST_WITH_HOOK
        assert done.stdout == ("none\n" if none else f"{expected}\n")


@pytest.mark.slow
def test_nothing_that_plans_work_imports_ray() -> None:
    """Planning comes before the executor; a library that brought Ray along would bring its settings with it."""
    code = """
import sys
import open_clip, timm, webdataset, zarr
import teachonce.stages.shard, teachonce.stages.vectors, teachonce.stages.cache, teachonce.stages.distill
import teachonce.stages.pretrain, teachonce.stages.import_checkpoint
print("ray" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
