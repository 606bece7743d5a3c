"""A node whose weights file is another one than the machine's that planned: no stage that runs a teacher works there."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from teachonce.stages.cache import plan_cache
from teachonce.stages.captions import plan_captions
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.teacher_config import TeacherConfig
from teachonce.stages.pretrain import plan_pretrain
from teachonce.stages.pretraining.settings import PretrainSettings
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.captions import CaptionSettings
from teachonce.stages.settings.few_shot import FewShotSettings
from teachonce.stages.teachers import load_teacher
from teachonce.storage_schemas.errors import MismatchError

CPU = Compute(device="cpu", precision="fp32", threads=1)


@pytest.fixture
def teacher(tiny_clip_teacher, tmp_path) -> Path:
    return shutil.copytree(tiny_clip_teacher, tmp_path / "teacher")


def planned(command: str, teacher: Path, shards: Any, pictures: Path, tmp_path: Path) -> Any:
    config, out = TeacherConfig.of(f"local-dir:{teacher}", None), str(tmp_path / "out")
    if command == "cache":
        return plan_cache(shards.location, config, out=out, settings=CacheSettings(targets="embedding"), compute=CPU)
    if command == "captions":
        (tmp_path / "t.csv").write_text(f"path,caption\n{shards.manifest().paths_of(0)[0]},a fox\n")
        settings = CaptionSettings(files=(str(tmp_path / "t.csv"),))
        return plan_captions(shards.location, config, out=out, settings=settings, compute=CPU)
    return plan_pretrain(
        str(pictures),
        config,
        out=out,
        few=FewShotSettings(shots=1),
        settings=PretrainSettings(batch_size=2),
        compute=CPU,
        show_progress=False,
    )


@pytest.mark.parametrize("command", ["cache", "captions", "pretrain"])
def test_it_is_refused(command, teacher, picture_shards, pictures, tmp_path) -> None:
    stage = pickle.dumps(planned(command, teacher, picture_shards, pictures, tmp_path))
    pickle.loads(stage).open()
    file = teacher / "open_clip_model.safetensors"
    state = safetensors.torch.load_file(file)
    state["visual.proj"] += 1
    safetensors.torch.save_file(state, file)
    load_teacher.cache_clear()  # another process has none
    with pytest.raises(MismatchError) as error:
        pickle.loads(stage).open()
    assert (error.value.code, error.value.where) == ("teacher-weights-differ-here", f"local-dir:{teacher}")
