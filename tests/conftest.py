"""What tests of any folder may use."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


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
