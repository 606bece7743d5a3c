"""What a node must have in common with the command, and what it is given: the package alone."""

from __future__ import annotations

import platform
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import teachonce
from teachonce.pipeline.executors import site as module
from teachonce.pipeline.executors.shipped import copy_package, shipped
from teachonce.pipeline.executors.site import Site
from teachonce.storage_schemas.errors import MismatchError

ROOT = Path(teachonce.__file__).parent


def test_what_a_site_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    here = Site.here()
    assert here.folder == str(tmp_path)
    assert here.versions["Python"] == ".".join(platform.python_version_tuple()[:2])
    assert here.versions["teachonce"] == teachonce.__version__
    assert here.versions["numpy"] == np.__version__
    assert {"Pillow", "torch", "open_clip_torch", "zarr"} < set(here.versions)
    assert not any("+" in version for version in here.versions.values())


def test_a_worker_enters_the_folder_of_the_command(monkeypatch, tmp_path):
    there = replace(Site.here(), folder=str(tmp_path))
    monkeypatch.chdir("/")
    there.enter()
    assert Path.cwd() == tmp_path
    replace(there, folder=str(tmp_path / "only there")).enter()
    assert Path.cwd() == tmp_path


def test_a_node_with_other_versions_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(module, "node_name", lambda: "node 10.0.0.2 (b)")
    here = Site.here()
    with pytest.raises(MismatchError) as error:
        replace(here, versions={**here.versions, "Pillow": "9.0", "torch": "1.0", "absent": "2"}).enter()
    assert (error.value.code, str(error.value)) == (
        "node-versions-differ",
        "a node has other versions than the command: node 10.0.0.2 (b): expected Pillow 9.0, torch 1.0, absent 2, found "
        f"Pillow {here.versions['Pillow']}, torch {here.versions['torch']}, absent absent. Next: install there what is expected, "
        "or start the node from the image of the others, then run the same command again",
    )


def test_the_package_alone_is_shipped(tmp_path):
    copy_package(tmp_path / "teachonce")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        "teachonce" + "".join(f".{part}" for part in path.relative_to(tmp_path / "teachonce").parent.parts)
        for path in (tmp_path / "teachonce").rglob("__init__.py")
    }
    assert packages == set(project["tool"]["setuptools"]["packages"])
    for package, patterns in project["tool"]["setuptools"]["package-data"].items():
        folder = tmp_path.joinpath(*package.split("."))
        assert all(any(folder.glob(pattern)) for pattern in patterns)
    assert {path.name for path in (tmp_path / "teachonce").iterdir()} == {
        "__init__.py",
        "__main__.py",
        "cli.py",
        "py.typed",
        "commands",
        "pipeline",
        "stages",
        "storage_schemas",
    }
    assert not list(tmp_path.rglob("__pycache__"))


def test_workers_wait_as_the_command_does(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    with shipped() as runtime_env:
        assert runtime_env["env_vars"]["OMP_WAIT_POLICY"] == "passive"
        (module,) = runtime_env["py_modules"]
        assert (Path(module) / "__init__.py").exists()
        assert "working_dir" not in runtime_env
    assert not Path(module).exists()
