"""What a worker of `cache` does: the same bytes however views are made, whole batches, and clear ends."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.cache import CacheStage, plan_cache
from teachonce.stages.caching.batches import batches
from teachonce.stages.caching.worker import CacheWorker
from teachonce.stages.decoding.work import Made
from teachonce.stages.models.compute import Compute
from teachonce.stages.samples.shard_views import RowViews, ShardRows
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.teachers import TeacherConfig, load_teacher
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import WorkerError, WorkerLost
from teachonce.storage_schemas.view_params import no_views


def png(seed: int, *, broken: bool = False) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:200] + bytes(200) + data[400:] if broken else data


@pytest.fixture(scope="module")
def shards(tmp_path_factory, make_shards):
    """Three shards; `shard` finds some images empty, only decoding finds others broken."""
    folder = tmp_path_factory.mktemp("worker")
    (folder / "images").mkdir()
    for i in range(40):
        data = b"" if i % 11 == 4 else png(i, broken=i % 7 == 3)
        (folder / "images" / f"{i:02d}.png").write_bytes(data)
    return make_shards(folder / "images", folder / "shards", shard_size=15)


def plan(shards, out: Path, *, decode_workers: int, views: int = 3, batch_size: int = 12) -> CacheStage:
    return plan_cache(
        str(shards.location),
        TeacherConfig.of(model="timm:test_vit", pretrained="random", size=32),
        out=str(out),
        views=ViewSpec(kind="random_resized_crop", count=views, seed=1),
        settings=CacheSettings(batch_size=batch_size),
        compute=Compute(device="cpu", precision="fp32", threads=1, decode_workers=decode_workers),
    )


def run(stage: CacheStage) -> None:
    run_stage(stage, stage.store, SerialExecutor(), progress=False)


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "timings" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def children(of: int) -> list[int]:
    """Processes below one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == of:
                found += [int(entry.name), *children(int(entry.name))]
        except OSError:
            continue
    return found


def test_the_bytes_are_those_of_one_thread_however_many_processes_make_views(shards, tmp_path):
    run(plan(shards, tmp_path / "threads", decode_workers=0))
    for workers in (1, 3):
        run(plan(shards, tmp_path / str(workers), decode_workers=workers))
        assert tree(tmp_path / str(workers)) == tree(tmp_path / "threads")
    receipts = Ledger(Location.of(tmp_path / "threads"), "cache").receipts()
    paths = {bad.path: bad.reason for receipt in receipts for bad in receipt.invalid_rows}
    assert {int(path[:2]) for path in paths} == {i for i in range(40) if i % 11 == 4 or i % 7 == 3}
    assert paths["04.png"] == "empty file"
    assert paths["03.png"].startswith("cannot be decoded")


def test_no_process_is_left_when_the_stage_is_done(shards, tmp_path):
    before = children(os.getpid())
    run(plan(shards, tmp_path / "s", decode_workers=2))
    left = [pid for pid in children(os.getpid()) if pid not in before]
    for pid in left:  # those that are about to end
        while Path(f"/proc/{pid}").exists():
            pass
    assert [pid for pid in children(os.getpid()) if pid not in before] == []


def rows_of_shards(usable: list[list[bool]]) -> list[tuple[ShardRows, Made]]:
    """Tasks with these rows, whose only view is filled with the row's number; unusable ones hold rubbish."""
    made, row = [], 0
    for task in usable:
        rows = tuple(range(row, row + len(task)))
        views = np.stack([np.full((1, 2), n if good else 99, np.uint8) for n, good in zip(rows, task, strict=True)])
        params = [no_views(1, 1)[0] if good else None for good in task]
        sizes = [(n, n + 1) if good else None for n, good in zip(rows, task, strict=True)]
        made.append((ShardRows(0, rows, ("",) * len(rows)), Made(RowViews(params=params, sizes=sizes), [views])))
        row += len(task)
    return made


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("seed", range(4))
def test_batches_are_the_usable_rows_in_order_cut_into_equal_pieces(size, seed):
    random = np.random.default_rng(seed)
    usable = [[bool(good) for good in random.random(random.integers(1, 9)) < 0.7] for _ in range(9)]
    expected = [row for row, good in enumerate(good for task in usable for good in task) if good]
    found = list(batches(rows_of_shards(usable), size))
    assert [batch.rows for batch in found] == [expected[i : i + size] for i in range(0, len(expected), size)]
    for batch in found:
        assert np.concatenate(batch.parts)[:, 0, 0].tolist() == batch.rows
        assert len(batch.params) == len(batch.rows)
        assert batch.sizes == [(row, row + 1) for row in batch.rows]


def test_a_killed_process_ends_the_run_in_one_clear_error_and_the_same_command_goes_on(shards, tmp_path, monkeypatch):
    run(plan(shards, tmp_path / "calm", decode_workers=0))
    stage, before = plan(shards, tmp_path / "s", decode_workers=2), children(os.getpid())
    worker = stage.open()
    assert isinstance(worker, CacheWorker)

    kind = type(worker.answers.teacher)  # not the teacher itself: it is kept, and would keep what undoing puts back

    def killing(self, images, names, outputs=kind.outputs):
        for pid in children(os.getpid()):
            if pid not in before:
                os.kill(pid, signal.SIGKILL)
        return outputs(self, images, names)

    monkeypatch.setattr(kind, "outputs", killing)
    monkeypatch.setattr(CacheStage, "open", lambda self: worker)
    with pytest.raises(WorkerLost) as told:
        run(stage)
    assert told.value.code == "loader-died"
    monkeypatch.undo()
    run(plan(shards, tmp_path / "s", decode_workers=2))
    assert tree(tmp_path / "s") == tree(tmp_path / "calm")


def failing(monkeypatch, error_above: int, error: Exception) -> list[int]:
    """Let every teacher raise for more than so many images. Returns the sizes that were tried."""
    kind, tried = type(load_teacher(TeacherConfig.of(model="timm:test_vit", pretrained="random", size=32))), []
    own = kind.outputs

    def outputs(self, images, names):
        tried.append(len(images))
        if len(images) > error_above:
            raise error
        return own(self, images, names)

    monkeypatch.setattr(kind, "outputs", outputs)
    return tried


def test_too_little_memory_for_a_batch_names_one_that_fits(shards, tmp_path, monkeypatch):
    tried = failing(monkeypatch, 7, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."))
    with pytest.raises(WorkerError) as told:
        run(plan(shards, tmp_path / "s", decode_workers=0, batch_size=24))
    assert told.value.code == "device-out-of-memory"
    assert (told.value.where, told.value.hint) == ("--batch-size 24", "use --batch-size 6")  # 2 samples of 3 views
    assert tried[:3] == [24, 12, 6]
    assert told.value.expected == "at most 6"


def test_where_no_batch_fits_it_says_so(shards, tmp_path, monkeypatch):
    failing(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(WorkerError) as told:
        run(plan(shards, tmp_path / "s", decode_workers=0))
    assert told.value.hint == "use --device cpu"


def test_a_gpu_that_fails_ends_the_run_and_what_was_done_is_kept(shards, tmp_path, monkeypatch):
    stage = plan(shards, tmp_path / "calm", decode_workers=0)
    kind = type(load_teacher(stage.config))
    own, passes, last = kind.outputs, [], 0

    def lost(self, images, names):
        passes.append(len(images))
        if len(passes) == last:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might …")
        return own(self, images, names)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "outputs", lost)
        run(stage)
        last = len(passes)  # in the third shard, which begins when the first is done
        passes.clear()
        with pytest.raises(WorkerLost) as told:
            run(plan(shards, tmp_path / "s", decode_workers=0))
    assert told.value.code == "gpu-lost"
    assert told.value.found == "CUDA error: an illegal memory access was encountered"
    ledger = Ledger(Location.of(tmp_path / "s"), "cache")
    assert 1 <= len(list(ledger.receipts())) < 3
    run(plan(shards, tmp_path / "s", decode_workers=0))
    assert tree(tmp_path / "s") == tree(tmp_path / "calm")
