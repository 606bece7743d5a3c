"""What tests of any folder may use."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

MINIATURE = Path(__file__).parent / "stages" / "datasets" / "miniature.py"


@pytest.fixture(scope="session")
def miniature() -> ModuleType:
    """The module stages/datasets/miniature.py: `miniature.build(root, "oxford_pets", per_class={"train": 3, …})`."""
    spec = importlib.util.spec_from_file_location("miniature", MINIATURE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["miniature"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
