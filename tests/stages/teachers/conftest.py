"""Photographs that installed packages ship, and how a teacher sees them."""

from __future__ import annotations

import importlib.resources

import numpy as np
import pytest
from PIL import Image
from teachonce.stages.teachers import Teacher
from teachonce.stages.views.render import render
from teachonce.stages.views.spec import CENTER

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
def pixels_for():
    """`pixels_for(teacher, images)`: uint8 (image, 3, size, size), the centre views that `cache` renders for it."""

    def render_all(teacher: Teacher, images: list[Image.Image]) -> np.ndarray:
        preprocess = teacher.spec.preprocess
        view = preprocess.center_view()
        views = [render(image, CENTER, preprocess.size, view) for image in images]
        return np.ascontiguousarray(np.stack(views).transpose(0, 3, 1, 2))

    return render_all
