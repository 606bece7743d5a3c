"""Photographs that installed packages ship, and tiny models of every kind."""

from __future__ import annotations

import importlib.resources
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from teachonce.stages.teachers import Teacher
from teachonce.stages.views import CENTER, render

_PHOTOGRAPHS = (
    ("sklearn.datasets", "images/china.jpg"),
    ("sklearn.datasets", "images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Three real photographs of two orientations, RGB."""
    images = []
    for package, name in _PHOTOGRAPHS:
        with importlib.resources.as_file(importlib.resources.files(package) / name) as path:
            images.append(Image.open(path).convert("RGB"))
    return images


@pytest.fixture(scope="session")
def clip_kinds() -> ModuleType:
    """The module clip_kinds.py beside this file."""
    spec = importlib.util.spec_from_file_location("clip_kinds", Path(__file__).with_name("clip_kinds.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["clip_kinds"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def pixels_for():
    """`pixels_for(teacher, images)`: uint8 (image, 3, size, size), the centre views that `cache` renders for it."""

    def render_all(teacher: Teacher, images: list[Image.Image]) -> np.ndarray:
        preprocess = teacher.spec.preprocess
        view = preprocess.center_view()
        views = [render(image, CENTER, preprocess.size, view) for image in images]
        return np.ascontiguousarray(np.stack(views).transpose(0, 3, 1, 2))

    return render_all
