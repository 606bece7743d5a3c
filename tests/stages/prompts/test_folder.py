"""The folder of learned prompts: what is written is read, with and without towers; what does not belong together is not."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from teachonce.pipeline.storage import Location
from teachonce.stages.prompts.folder import read_prompts, write_prompts
from teachonce.stages.teachers import TeacherConfig, load_teacher
from teachonce.storage_schemas.errors import DamagedError, IncompleteError, InputError, MismatchError
from teachonce.storage_schemas.prompts import PromptsConfig

SHAPE = {"vision_length": 2, "vision_depth": 3, "text_length": 4, "text_depth": 1}
CONFIG = PromptsConfig(
    backbone={"model": "M", "pretrained": None, "architecture": "a", "weights": "w", "preprocess": {}},
    shape=SHAPE,
    context="a photo of a",
    class_names=("Füchse", "b"),
    base_classes=("b",),
    origin={"method": "x"},
)


def prompts() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "vision_prompts_LPD": torch.randn(3, 2, 5, generator=generator),
        "text_prompts_LPD": torch.randn(1, 4, 6, generator=generator),
    }


@pytest.mark.parametrize("towers", [None, {"visual.proj": torch.ones(2, 3).half(), "logit_scale": torch.tensor(3.0)}])
def test_round_trip(tmp_path: Path, towers) -> None:
    names = write_prompts(Location.of(tmp_path / "p"), prompts(), CONFIG, towers)
    assert sorted(names) == sorted(f.name for f in (tmp_path / "p").iterdir())
    loaded = read_prompts(str(tmp_path / "p"))
    assert replace(loaded.config, files=None) == CONFIG
    assert loaded.config.files == {
        name: hashlib.sha256((tmp_path / "p" / name).read_bytes()).hexdigest() for name in names[1:]
    }
    assert loaded.shape.to_json() == SHAPE
    assert loaded.prompts.keys() == prompts().keys()
    assert all(torch.equal(loaded.prompts[name], value) for name, value in prompts().items())
    if towers is None:
        assert loaded.towers is None
    else:
        assert {n: (v.dtype, v.tolist()) for n, v in loaded.towers.items()} == {
            n: (v.dtype, v.tolist()) for n, v in towers.items()
        }


def test_towers_of_an_earlier_writing_do_not_stay(tmp_path: Path) -> None:
    write_prompts(Location.of(tmp_path), prompts(), CONFIG, {"logit_scale": torch.tensor(3.0)})
    assert write_prompts(Location.of(tmp_path), prompts(), CONFIG) == ("config.json", "prompts.safetensors")
    assert read_prompts(str(tmp_path)).towers is None


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_prompts(str(tmp_path))
    assert error.value.code == "prompts-missing"
    (tmp_path / "run").mkdir()
    with pytest.raises(IncompleteError) as incomplete:
        read_prompts(str(tmp_path))
    assert incomplete.value.code == "prompts-unfinished"
    write_prompts(Location.of(tmp_path), prompts(), CONFIG, {"logit_scale": torch.tensor(3.0)})
    file = tmp_path / "towers.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedError) as damage:
        read_prompts(str(tmp_path))
    assert (damage.value.code, damage.value.what) == (
        "config-file-changed",
        "towers.safetensors is not the file that its config.json was written with",
    )
    assert str(damage.value.expected).startswith("sha256")
    deep = {**prompts(), "text_prompts_LPD": torch.zeros(2, 4, 6)}
    write_prompts(Location.of(tmp_path), deep, CONFIG)
    with pytest.raises(DamagedError) as damage:
        read_prompts(str(tmp_path))
    assert damage.value.code == "prompts-do-not-fit"
    (tmp_path / "prompts.safetensors").unlink()
    with pytest.raises(DamagedError) as damage:
        read_prompts(str(tmp_path))
    assert damage.value.code == "prompts-damaged"
    assert "prompts.safetensors" in str(damage.value.where)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "schema_version": 0}))
    with pytest.raises(MismatchError) as mismatch:
        read_prompts(str(tmp_path))
    assert (mismatch.value.code, mismatch.value.what, str(mismatch.value.found)) == (
        "format-version-unknown",
        "a folder of prompts of another version of teachonce",
        "0 (the files)",
    )
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DamagedError) as damage:
        read_prompts(str(tmp_path))
    assert (damage.value.code, damage.value.what) == ("config-malformed", "not a folder of prompts")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"model": 5},
        {"model": ["ViT-B-32"]},
        {"pretrained": 5},
        {"architecture": None},
        {"weights": {}},
    ],
)
def test_prompts_that_do_not_name_their_model(tmp_path: Path, changes) -> None:
    backbone = {
        key: value for key, value in {**CONFIG.backbone, **changes}.items() if key != "model" or value is not None
    }
    write_prompts(Location.of(tmp_path / "p"), prompts(), replace(CONFIG, backbone=backbone))
    with pytest.raises(DamagedError) as error:
        load_teacher(TeacherConfig.of(f"teachonce:{tmp_path}/p"))
    assert error.value.code == "prompts-without-model"
    assert str(error.value.where).endswith("/p/config.json")
    assert error.value.found is not None


def test_a_model_of_prompts_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    backbone = {**CONFIG.backbone, "model": "ViT-B-32", "pretrained": str(tmp_path / "pipe.pt")}
    write_prompts(Location.of(tmp_path / "p"), prompts(), replace(CONFIG, backbone=backbone))
    with pytest.raises(InputError) as error:
        load_teacher(TeacherConfig.of(f"teachonce:{tmp_path}/p"))
    assert error.value.code == "weights-missing"


def test_prompts_of_another_width_are_not_stretched(tmp_path: Path, tiny_clip_teacher) -> None:
    backbone = load_teacher(TeacherConfig.of(f"local-dir:{tiny_clip_teacher}"))
    shape = {"vision_length": 2, "vision_depth": 1, "text_length": 4, "text_depth": 1}
    narrow = {"vision_prompts_LPD": torch.ones(1, 2, 1), "text_prompts_LPD": torch.ones(1, 4, 16)}
    about = {
        "model": f"local-dir:{tiny_clip_teacher}",
        "pretrained": None,
        "architecture": backbone.spec.architecture,
        "weights": backbone.spec.weights_digest,
    }
    write_prompts(Location.of(tmp_path / "p"), narrow, replace(CONFIG, backbone=about, shape=shape))
    with pytest.raises(MismatchError) as error:
        load_teacher(TeacherConfig.of(f"teachonce:{tmp_path}/p"))
    assert (
        "learned for another backbone: teachonce:p: expected vision_prompts_LPD (1, 2, 1) (the prompts), found (1, 2, 32) (the model). "
        in str(error.value)
    )
