"""docs/extending.md as a package: its teacher and its recipe are found by entry points, and do what the page says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from PIL import Image
from teachonce.stages.recipes import registry as recipes
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.teachers import registry as teachers
from teachonce.storage_schemas.errors import InputError

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
SIZE = 28


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder of installed packages with the page's one, as pip would lay it out."""
    site = tmp_path_factory.mktemp("site")
    (site / "my_methods").mkdir()
    (site / "my_methods/__init__.py").touch()
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        name = re.match(r'"""my_methods/(\w+\.py)', code)
        assert name, code[:60]
        (site / "my_methods" / name[1]).write_text(code)
    points = re.findall(r'\[project\.entry-points\."(.*?)"\]\n(\w+) = "(.*?)"', PAGE)
    assert len(points) == 2
    info = site / "my_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 1.0\n")
    text = "".join(f"[{group}]\n{name} = {value}\n\n" for group, name, value in points)
    (info / "entry_points.txt").write_text(text)
    return site


@pytest.fixture(scope="module")
def dino(tmp_path_factory) -> Path:
    """A tiny DINOv2 with random weights, in a folder."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=14)
    folder = tmp_path_factory.mktemp("dino") / "tiny"
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(package, dino, stage_inputs, tmp_path_factory) -> Path:
    """What the page's two commands make of small pictures, in one process in which the package is installed."""
    folder = tmp_path_factory.mktemp("made")
    pictures = folder / "pictures"
    for index in range(24):
        stage_inputs.draw_picture(pictures / f"{index:02d}.jpg", index)
    commands = [
        f"shard {pictures} --out shards --executor serial --order source",
        f"cache shards --teacher dinov2:{dino} --targets embedding,tokens --views 2 --encoding fp32 --precision fp32 "
        "--out targets.zarr --executor serial",
        "distill shards targets.zarr --student timm:test_resnet --student-size 32 --recipe relational --relation-weight 2 "
        "--epochs 3 --batch-size 8 --warmup-epochs 0 --decode-workers 0 --out student",
        "distill --help",
    ]
    program = (
        "import sys, json\nfrom teachonce.cli import main\n"
        "for words in json.loads(sys.argv[1]): main(words, standalone_mode=False)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps([command.split() for command in commands])],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": _path(package)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (folder / "help.txt").write_text(done.stdout)
    (folder / "told.txt").write_text(done.stderr)
    return folder


def _path(package: Path) -> str:
    return os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH", ""))))


@pytest.mark.slow
def test_the_teachers_targets_are_the_models_own(made, dino):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(dino).eval()
    data = xarray.open_zarr(made / "targets.zarr", consolidated=False).load()
    assert data["tokens"].shape[1:] == (2, 4, 16)
    pictures = made / "pictures"
    names = sorted((p.relative_to(pictures).as_posix() for p in pictures.rglob("*") if p.is_file()), key=str.encode)
    checked = 0
    for row in np.flatnonzero(data["valid"].values)[:5]:
        for view in range(2):
            top, left, height, width, flip = data["view_params"].values[row, view, :5].tolist()
            image = Image.open(pictures / names[row]).convert("RGB").crop((left, top, left + width, top + height))
            image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
            x = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
            mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            with torch.no_grad():
                found = model(((x - mean) / std)[None])
            assert data["embedding"].values[row, view] == pytest.approx(found.pooler_output[0].numpy(), abs=1e-4)
            assert data["tokens"].values[row, view] == pytest.approx(found.last_hidden_state[0, 1:].numpy(), abs=1e-4)
            checked += 1
    assert checked == 10


@pytest.mark.slow
def test_the_recipe_trains_and_its_settings_are_options(made):
    config = json.loads((made / "student/config.json").read_text())
    assert config["origin"]["recipe"] == "relational"
    assert config["origin"]["settings"]["relation_weight"] == 2.0
    assert config["origin"]["targets"] == ["embedding"]
    losses = [json.loads(line)["loss"] for line in (made / "student/run/log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert "--relation-weight" in (made / "help.txt").read_text()
    names = "|".join(recipes.own_settings())
    assert f"{names}|relational" in re.sub(r"\s", "", (made / "help.txt").read_text())


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A package whose entry points cannot be loaded."""
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[teachonce.teachers]\nbroken = no_such_module:load\n[teachonce.recipes]\nbroken = no_such_module:Recipe\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_packages_that_cannot_be_loaded_are_named(broken):
    with pytest.raises(InputError) as error:
        teachers.load_teacher(TeacherConfig(model="broken:x"))
    assert (error.value.code, str(error.value.where)) == ("plugin-unloadable", "broken:x")
    assert str(error.value.expected).startswith("no_such_module:load")
    assert "broken" in recipes.recipe_names()
    with pytest.raises(InputError) as error:
        recipes.recipe_named("broken")
    assert error.value.code == "plugin-unloadable"
    assert str(error.value.where).startswith("--recipe broken")


def test_no_package_takes_the_place_of_an_own_recipe(tmp_path, monkeypatch):
    info = tmp_path / "rude-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rude\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[teachonce.recipes]\nkd = no_such_module:Recipe\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert type(recipes.recipe_named("kd")).__module__ == "teachonce.stages.recipes.kd"
    assert recipes.recipe_names() == tuple(recipes.own_settings())
