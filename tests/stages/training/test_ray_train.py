"""`distill --workers 2` on a real local Ray: what it listens on, an error on one worker, a worker that is killed, and what is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from teachonce.pipeline.board import Board
from teachonce.pipeline.executors import ray_train
from teachonce.pipeline.progress import Progress
from teachonce.pipeline.storage import Location
from teachonce.stages.corpora.shards import ShardSet
from teachonce.storage_schemas.errors import InputError, MissingDependency

EPOCHS = 30

#: One that needs open_clip neither here nor in the workers.
STUDENT: dict[str, Any] = {"model": "timm:test_vit", "size": 32}

#: The same command twice, on one Ray: with a damaged tar, and with the whole one.
TWICE = """
import pathlib, sys
import click
from teachonce.cli import main

whole, tar, *command = sys.argv[1:]
try:
    main(command, standalone_mode=False)
except click.ClickException as error:
    error.show()
pathlib.Path(whole).replace(tar)
main(command, standalone_mode=False)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_an_error_is_told_at_once_and_a_killed_worker_changes_nothing(
    python, listening, together, taught_store, tmp_path
) -> None:
    """On a Ray that starts with the command, which listens on loopback alone."""
    shards, out, home = tmp_path / "shards", tmp_path / "out", tmp_path / "home"
    shutil.copytree(taught_store.shards.location.path, shards)
    home.mkdir()
    damage(shards, tmp_path / "whole.tar")
    command = ["distill", shards, taught_store.location.path, "--out", out, "--recipe", "kd", "--epochs", EPOCHS]
    command += ["--student", STUDENT["model"], "--student-size", STUDENT["size"], "--projector", "mlp", "--seed", 3]
    command += ["--batch-size", 8, "--threads", 1, "--decode-workers", 0, "--checkpoint-every", 7, "--workers", 2]
    environment = {**os.environ, "HOME": str(home)}
    environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)  # of a Ray that this process may have joined
    tars = (tmp_path / "whole.tar", shards / "000002.tar")
    running = python.start("-W", "ignore", "-c", TWICE, *tars, *command, env=environment)
    try:
        while last_step(out) < 20:  # the damaged tar stops it in the second epoch, before step 10
            assert running.poll() is None, running.stderr
            time.sleep(0.02)
        workers = workers_of(home)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)  # while they are looked at
        assert len(workers) == 2
        listening.check_loopback_only(running.pid, f"HOME={home}", workers)
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
        os.kill(min(workers), signal.SIGKILL)
        assert running.wait(400) == 0, running.stderr
    finally:
        running.kill()
        running.wait()
    stderr_file = running.stderr
    before, error, after = stderr_file.partition(
        "Error: 1 of 1 unit of distill failed, the first is student: an image in a tar changed: "
    )
    assert error, stderr_file
    assert after.splitlines()[0].endswith("run the same `teachonce shard` command again"), stderr_file
    restart = "distill: a worker died, so all start again from the last checkpoint (1 of 3 times)\n"
    assert (before.count("all start again"), after.count(restart)) == (0, 1), stderr_file
    assert f"\ndistill (resumed): {EPOCHS * 40}/{EPOCHS * 40} img, " in after, stderr_file
    for noise in ("RayTrainWorker", "TrainController", "Traceback"):
        assert noise not in stderr_file, stderr_file

    chosen = {
        "shards": str(shards),
        "store": str(taught_store.location),
        "student": STUDENT,
        "recipe": "kd",
        "options": {"projector": "mlp", "epochs": EPOCHS, "batch_size": 8},
        "seed": 3,
    }
    assert together("distill", tmp_path / "ranks", out=str(tmp_path / "calm"), unit_options=chosen) == [0, 0]
    for name in ("model.safetensors", "config.json", "ledger/distill/receipts/student.json"):
        assert (out / name).read_bytes() == (tmp_path / "calm" / name).read_bytes(), name
    left = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert {name for name in left if "tfevents" not in name} == {
        "class_vectors.safetensors",
        "config.json",
        "ledger/distill/plan.json",
        "ledger/distill/receipts/student.json",
        "ledger/distill/timings/student.json",
        "model.safetensors",
        "run/log.jsonl",
    }
    assert list(home.rglob("ray_results")) == []


def damage(shards: Path, whole: Path) -> None:
    """Flip a bit of one image, which one of the two workers will find; keep the whole tar."""
    tar, record = shards / "000002.tar", ShardSet.open(str(shards)).reader(2).index[3]
    shutil.copy(tar, whole)
    data = bytearray(tar.read_bytes())
    data[int(record["offset"]) + int(record["length"]) // 2] ^= 1
    tar.write_bytes(data)


def last_step(out: Path) -> int:
    log = out / "run" / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def workers_of(home: Path) -> set[int]:
    """Process ids of the training processes that were started with this home."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"RayTrainWorker" in name and f"HOME={home}\0".encode() in environment:
            found.add(int(folder.name))
    return found


class ActorDied(Exception):
    """As Ray's own errors look."""


ActorDied.__module__ = "ray.exceptions"


class GroupError(Exception):
    def __init__(self, *failures: Exception) -> None:
        self.worker_failures = dict(enumerate(failures))


LOST = RuntimeError("[pair.cc:561] gloo: Connection closed by peer [127.0.0.1]:18077")
CLEAR, BUG, DIED = (
    InputError("the loss is not finite", code="loss-not-finite"),
    TypeError("a bug"),
    ActorDied("gone"),
)


@pytest.mark.parametrize(
    ("failures", "counts", "again"),
    [
        ((LOST, CLEAR), CLEAR, False),
        ((DIED, CLEAR), CLEAR, False),
        ((BUG, CLEAR), CLEAR, False),
        ((LOST, BUG), BUG, False),
        ((LOST, DIED), DIED, True),
        ((LOST,), LOST, True),
        ((RuntimeError("CUDA out of memory"), LOST), None, False),
    ],
)
def test_which_error_counts(failures, counts, again) -> None:
    error = ray_train._decisive_error(GroupError(*failures))
    assert error is (counts or failures[0])
    assert ray_train._is_death(error) is again


def test_what_a_rank_says_is_printed_line_by_line(tmp_path, capsys) -> None:
    stderr_file, board = Location.of(tmp_path / "said"), Board("é", Progress("é", None))
    assert ray_train._print_from(stderr_file, 0, board) == 0
    stderr_file.path.write_bytes("é: 1\né: 2".encode())
    offset = ray_train._print_from(stderr_file, 0, board)
    assert capsys.readouterr().err == "é: 1\n"
    with stderr_file.append() as file:
        file.write("0\né (resumed): 3\n4\n".encode())
    assert ray_train._print_from(stderr_file, offset, board) == len("é: 20\né (resumed): 3\n4\n".encode())
    assert capsys.readouterr().err == "é: 20\né (resumed): 3\né: 4\n"


def test_without_ray_trains_own_dependencies(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.train.torch", None)
    for name in ray_train._SETTINGS:
        monkeypatch.setenv(name, "")
    with pytest.raises(MissingDependency) as error:
        ray_train._require_ray_train()
    assert str(error.value) == ("training on several workers needs Ray Train. Next: pip install 'teachonce[train]'")


def test_processes_of_a_cluster_meet_where_ray_train_says():
    pytest.importorskip("ray.train.torch")
    from ray.train.torch import TorchConfig

    config, kept = ray_train._process_group("auto", gpus=False)
    assert isinstance(config, TorchConfig)
    assert (config.timeout_s, kept) == (ray_train.WAIT_SECONDS, None)
    assert issubclass(config.backend_cls, TorchConfig().backend_cls)  # whose first rank opens the store
