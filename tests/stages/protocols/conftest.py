"""Miniature data sets of coloured digits that the demo's tiny CLIPs know, and a benchmark of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import teachonce
from click.testing import CliRunner, Result
from PIL import Image
from teachonce.cli import main
from teachonce.stages.demo import images

MODELS = Path(teachonce.__file__).parent / "stages" / "demo"
PETS = ("red seven", "blue two", "green zero", "white four", "pink one", "purple nine")
#: An odd number of classes: three of them are base classes.
TEXTURES = ("blue seven", "red zero", "yellow one", "orange four", "green six")
PER_CLASS = {"train": 12, "val": 6, "test": 8}

Benchmark = Callable[..., Result]


def draw(name: str, number: int) -> Image.Image:
    """A digit of its own for each class and number."""
    painted = images.render("domain", "domain", 1, start=number, classes=[name])
    return Image.fromarray(painted.images_NHWC[0])


@pytest.fixture(scope="session")
def data(tmp_path_factory, miniature) -> Path:
    """CoOp's root folder with ImageNet, OxfordPets and DTD."""
    root = tmp_path_factory.mktemp("data")
    miniature.build(root, "oxford_pets", classes=PETS, per_class=PER_CLASS, draw=draw)
    miniature.build(root, "dtd", classes=TEXTURES, per_class=PER_CLASS, draw=draw)
    miniature.build(
        root, "imagenet", classes=("red three", "blue eight", "white two"), per_class={"train": 8, "test": 4}, draw=draw
    )
    return root


@pytest.fixture(scope="session")
def benchmark(data: Path) -> Benchmark:
    """Runs `teachonce benchmark promptkd` on the miniatures with the tiny models; options given replace these."""

    def run(out: Path, *options: str, students: tuple[str, ...] = ("student",)) -> Result:
        words = [
            "benchmark",
            "promptkd",
            "--data",
            str(data),
            "--out",
            str(out),
            "--seeds",
            "1,2",
            "--shots",
            "4",
            "--teacher",
            f"local-dir:{MODELS}/teacher",
            "--epochs",
            "3",
            "--views",
            "2",
            "--threads",
            "1",
            "--pretrain-options",
            "--epochs 1 --batch-size 4 --lr 0.001 --vision-depth 3 --text-depth 3",
            "--cache-options",
            "--view-scale 0.5,1 --view-flip 0",
            "--distill-options",
            "--batch-size 12 --decode-workers 0 --optimizer adamw --lr 0.01 --prompt-depth 3",
            "--executor",
            "serial",
            *options,
        ]
        for name in students:
            words += ["--student", f"local-dir:{MODELS}/{name}"]
        return CliRunner().invoke(main, words, catch_exceptions=False)

    return run
