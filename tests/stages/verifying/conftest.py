"""Shards and stores as the real stages leave them, to be copied and spoilt; and what spoils them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger, record_outputs
from teachonce.pipeline.looking import look
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.cache import plan_cache
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.models.compute import Compute
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.settings.verify import VerifySettings, VerifyTeacherSettings
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.vectors import plan_vectors
from teachonce.stages.verify import plan_verify
from teachonce.stages.verifying.finding import Finding
from teachonce.stages.verifying.report import Report
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.receipt import Receipt
from teachonce.storage_schemas.samples import shard_name
from teachonce.storage_schemas.store_description import StoreDescription
from teachonce.storage_schemas.target_store import TargetBlock, open_root, read_block, write_block

CPU = Compute(device="cpu", precision="fp32", threads=1)
VIEWS = ViewSpec(kind="random_resized_crop", count=2, seed=1)


@dataclass(frozen=True)
class Pair:
    """Shards, and a store that was made of them."""

    shards: Path
    store: Path

    @property
    def ledger(self) -> Ledger:
        return Ledger(Location.of(self.store), "cache")

    def receipt(self, shard: int) -> Receipt:
        found = self.ledger.receipt(shard_name(shard))
        assert found is not None
        return found

    @property
    def shard_set(self) -> ShardSet:
        return ShardSet.open(self.shards)

    def codes(self, **settings: Any) -> list[str]:
        """The codes of all findings."""
        return [finding.code for finding in self.findings(**settings)]

    def findings(self, **settings: Any) -> list[Finding]:
        return self.report(**settings).in_order

    def report(self, *, teacher: VerifyTeacherSettings | None = None, **settings: Any) -> Report:
        stage, findings = plan_verify(
            str(self.shards), str(self.store), settings=VerifySettings(**settings), teacher=teacher
        )
        report = Report(shards="shards", store="store", level="full", findings=list(findings))
        if stage is not None:
            report.begin(stage.plan())
            for outcome in look(stage, SerialExecutor(), stage.whole.store):
                report.add(outcome.seen)
        return report

    def rewrite(self, shard: int, change: Callable[[TargetBlock], TargetBlock]) -> None:
        """Write other rows with a receipt that vouches for them: what no digest can find."""
        root = open_root(str(self.store), mode="a")
        spec = StoreDescription.read(root, self.store).spec
        block = change(read_block(root, spec, shard))
        outputs = record_outputs(Location.of(self.store), write_block(root, spec, shard, block))
        self.ledger.commit(replace(self.receipt(shard), outputs=outputs, digest=block.digest), {})

    def chunk(self, array: str, shard: int) -> Path:
        """The first file of a shard's chunks of an array."""
        return sorted(
            (self.store / array / "c" / str(shard)).rglob("*")
            if array != "valid"
            else [self.store / "valid" / "c" / str(shard)]
        )[-1]


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[TargetBlock], TargetBlock]:
    """A block with one target changed; rows that are not valid stay NaN."""

    def apply(block: TargetBlock) -> TargetBlock:
        return replace(block, targets={**block.targets, name: change(np.array(block.targets[name]))})

    return apply


def make_store(shards: ShardSet, out: Path, teacher: TeacherConfig, **settings: Any) -> Path:
    """Class vectors of the corpus's labels, and all targets of the teacher, by the real stages."""
    views = settings.pop("views", VIEWS)
    compute = settings.pop("compute", CPU)
    stages: list[Any] = []
    if settings.pop("vectors", True):
        classes = settings.pop("classes", str(shards.location.path))
        stages.append(
            lambda: plan_vectors(teacher, out=str(out), settings=VectorsSettings(classes=classes), compute=CPU)
        )
    cache = CacheSettings(**{"targets": "both", "encoding": "fp32", "batch_size": 16, **settings})
    stages.append(
        lambda: plan_cache(shards.location, teacher, out=str(out), views=views, settings=cache, compute=compute)
    )
    for plan in stages:
        stage = plan()
        run_stage(stage, stage.store, SerialExecutor(), progress=False)
    return out


@pytest.fixture(scope="session")
def teacher(tiny_clip_teacher) -> TeacherConfig:
    return TeacherConfig(model=f"local-dir:{tiny_clip_teacher}")


@pytest.fixture(scope="session")
def made(picture_shards, teacher, tmp_path_factory) -> Pair:
    """Four shards of 13 pictures and a store in fp32, two views, logits and embeddings. Nobody changes them."""
    store = make_store(picture_shards, tmp_path_factory.mktemp("verified") / "s.zarr", teacher)
    return Pair(Path(picture_shards.location.path), store)


@pytest.fixture
def pair(made, tmp_path) -> Pair:
    """A copy, to be spoilt."""
    copy = Pair(tmp_path / "shards", tmp_path / "s.zarr")
    shutil.copytree(made.shards, copy.shards)
    shutil.copytree(made.store, copy.store)
    return copy


@pytest.fixture(scope="session")
def plant() -> Any:
    """This module: `plant.changed`, `plant.make_store`, `plant.Pair`."""
    import sys

    return sys.modules[__name__]
