"""One flipped bit, anywhere in anything that is written: it is found, or it changes nothing. Never another result.

`TEACHONCE_FLIPS=20000 pytest tests/stages/test_flipped_bits.py` flips more of them, `TEACHONCE_FLIP_SEED` others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.cache import plan_cache
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.distill import plan_distill
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.pretrain import plan_pretrain
from teachonce.stages.pretraining.settings import PretrainSettings
from teachonce.stages.prompts.folder import read_prompts
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.settings.few_shot import FewShotSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.students.bundle import load_student
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.training.checkpoint import (
    Best,
    Training,
    TrainState,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from teachonce.stages.vectors import plan_vectors
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import TeachonceError
from teachonce.storage_schemas.fingerprint import Fingerprint

CPU = Compute(device="cpu", precision="fp32", threads=1)
FLIPS = int(os.environ.get("TEACHONCE_FLIPS", "1000"))
SEED = int(os.environ.get("TEACHONCE_FLIP_SEED", "0"))

#: Not read where results are: notes beside them; and what a run that has finished keeps of its way.
NOTES = {"timings", "failures", "driver.json", "run", "distill", "pretrain"}


@dataclass(frozen=True)
class Work:
    """A folder of results, and what a reader gets of it."""

    folder: Path
    read: Callable[[Path], Any]


def shards_of(folder: Path) -> Any:
    """Every image, with everything that the manifest says of it."""
    shards = ShardSet.open(str(folder))
    corpus = shards.corpus
    entries = list(shards.manifest())
    found: list[Any] = [corpus, entries, list(shards.manifest().labels())]
    for shard in range(corpus.num_shards):
        reader = shards.reader(shard)
        rows = corpus.rows(shard)
        found += [(row, reader.key(row), reader.read(row)) for row in rows if row not in reader.invalid]
        found.append(dict(reader.invalid))
        reader.close()
    return found


def pairs_of(shards: Path) -> Callable[[Path], Any]:
    """Every pair of two epochs, and the class vectors."""

    def read(store: Path) -> Any:
        with TargetStream(
            str(shards),
            str(store),
            image_size=16,
            batch_size=16,
            seed=0,
            targets=["logits", "embedding"],
            drop_last=False,
        ) as stream:
            vectors = stream.class_vectors
            epochs = [
                (
                    b.rows_N.numpy().tobytes(),
                    b.images_NCHW.numpy().tobytes(),
                    *(b.targets[name].numpy().tobytes() for name in ("logits", "embedding")),
                )
                for epoch in range(2)
                for b in stream.batches(epoch)
            ]
        return epochs, vectors.names, vectors.vectors_CD.tobytes(), vectors.logit_scale, vectors.normalized

    return read


def student_of(folder: Path) -> Any:
    """Logits of fixed pixels, and all that the config says."""
    loaded = load_student(str(folder))
    images_NCHW = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    logits_NC = loaded.vectors.logits(loaded.student(images_NCHW))
    return logits_NC.numpy().tobytes(), loaded.config, loaded.preprocess


def prompts_of(folder: Path) -> Any:
    """Prompts, and all that the config says."""
    loaded = read_prompts(str(folder))
    return {name: value.numpy().tobytes() for name, value in loaded.prompts.items()}, loaded.config


class Line(torch.nn.Linear):
    """Something to train."""

    def trained(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.named_parameters())

    def changing(self) -> dict[str, torch.Tensor]:
        return dict(self.state_dict())


BEST = Best(epoch=1, step=2, accuracy=0.25)
RUN = Fingerprint(fields={"recipe": "kd", "lr": 0.5})


def a_training() -> Training:
    line = Line(6, 5)
    return Training(trainee=line, optimizer=torch.optim.AdamW(line.parameters(), lr=0.5), average=None)


def checkpoint_of(folder: Path) -> Any:
    """Where training is, with weights, optimizer and best weights."""
    training = a_training()
    reached = load_checkpoint(Location.of(folder), training, RUN)
    state = {str(name): value.numpy().tobytes() for name, value in training.trainee.changing().items()}
    optimizer = [
        {key: value.numpy().tobytes() for key, value in training.optimizer.state[parameter].items()}
        for parameter in training.trainee.trained().values()
    ]
    assert reached.best is not None
    load_best(Location.of(folder), training, reached.best)
    best = {str(name): value.numpy().tobytes() for name, value in training.trainee.changing().items()}
    return reached, state, optimizer, best


@pytest.fixture(scope="module")
def works(picture_shards, pictures, tiny_clip_teacher, tmp_path_factory) -> dict[str, Work]:
    """Results of every stage, made by the real ones."""
    top = tmp_path_factory.mktemp("works")
    shards, store = str(picture_shards.location.path), str(top / "store.zarr")
    teacher = TeacherConfig(model=f"local-dir:{tiny_clip_teacher}")

    def run(stage: Any) -> None:
        run_stage(stage, stage.out if hasattr(stage, "out") else stage.store, SerialExecutor(), progress=False)

    run(plan_vectors(teacher, out=store, settings=VectorsSettings(classes=shards), compute=CPU))
    views = ViewSpec(kind="random_resized_crop", count=2, seed=1)
    run(
        plan_cache(
            shards,
            teacher,
            out=store,
            views=views,
            settings=CacheSettings(targets="both", encoding="fp16", batch_size=16),
            compute=CPU,
        )
    )
    run(
        plan_distill(
            shards,
            store,
            StudentConfig(model="timm:test_resnet", pretrained="random", size=32),
            out=str(top / "student"),
            recipe="kd",
            options={"epochs": 1, "batch_size": 16},
            compute=CPU,
            settings=DistillSettings(),
        )
    )
    run(
        plan_pretrain(
            str(pictures),
            teacher,
            out=str(top / "prompts"),
            few=FewShotSettings(shots=1),
            settings=PretrainSettings(epochs=1, batch_size=2),
            compute=CPU,
            show_progress=False,
        )
    )
    training = a_training()
    loss = training.trainee(torch.ones(3, 6)).square().sum()
    loss.backward()
    training.optimizer.step()
    (top / "run").mkdir()
    save_best(Location.of(top / "run"), training, BEST)
    training.optimizer.step()
    save_checkpoint(Location.of(top / "run"), training, TrainState(step=3, best=BEST), RUN)
    return {
        "shards": Work(Path(shards), shards_of),
        "store": Work(Path(store), pairs_of(Path(shards))),
        "bundle": Work(top / "student", student_of),
        "prompts": Work(top / "prompts", prompts_of),
        "checkpoint": Work(top / "run", checkpoint_of),
    }


def kinds_of_files(folder: Path) -> dict[str, list[Path]]:
    """Files by kind: the same place in the tree with numbers left out, so that no kind drowns in another's number."""
    kinds: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        if file.is_file() and not NOTES & set(relative.parts):
            kind = "/".join("N" if part.split(".")[0].isdecimal() else part for part in relative.parts)
            kinds.setdefault(kind, []).append(relative)
    return kinds


@pytest.mark.parametrize("name", ["shards", "store", "bundle", "prompts", "checkpoint"])
def test_a_flipped_bit_is_never_another_result(works, tmp_path, name):
    work = works[name]
    copy = tmp_path / work.folder.name
    shutil.copytree(work.folder, copy)
    expected = work.read(copy)
    assert work.read(copy) == expected
    rng = np.random.default_rng([SEED, *name.encode()])
    kinds = kinds_of_files(copy)
    found = changed_nothing = 0
    for flip in range(FLIPS // 5):
        files = list(kinds.values())[flip % len(kinds)]
        file = copy / files[rng.integers(len(files))]
        whole = file.read_bytes()
        data = bytearray(whole)
        place, bit = int(rng.integers(len(data))), int(rng.integers(8))
        data[place] ^= 1 << bit
        file.write_bytes(data)
        try:
            result = work.read(copy)
        except TeachonceError:
            found += 1
        else:
            assert result == expected, f"bit {bit} of byte {place} of {file.relative_to(copy)}"
            changed_nothing += 1
        file.write_bytes(whole)
    assert work.read(copy) == expected
    assert found > changed_nothing
