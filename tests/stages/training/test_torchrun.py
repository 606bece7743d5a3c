"""`torchrun … -m teachonce distill`: the bytes of two workers on Ray; stopped, killed and failed on one of two ranks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.executors.launched import Launched
from teachonce.stages.corpora.shards import ShardSet
from teachonce.storage_schemas.errors import InputError

EPOCHS = 30

#: One that needs no open_clip: each rank of each start imports what its student needs.
STUDENT: dict[str, Any] = {"model": "timm:test_vit", "size": 32}

Start = Callable[..., Any]

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def start(python, taught_store, tmp_path) -> Iterator[Start]:
    """`start(*options)`: two ranks on loopback that train to tmp_path/out; stdout and stderr in files of these names.

    The ranks are new interpreters, as torchrun starts them; torchrun itself comes with its libraries.
    """
    running: list[Any] = []

    def begin(*more: object, shards: object = taught_store.shards.location.path) -> Any:
        launcher = ["-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", 2]
        command = ["distill", shards, taught_store.location.path, "--out", tmp_path / "out", "--recipe", "kd"]
        command += [
            "--student",
            STUDENT["model"],
            "--student-size",
            STUDENT["size"],
            "--projector",
            "mlp",
            "--epochs",
            EPOCHS,
            "--seed",
            3,
        ]
        command += ["--batch-size", 8, "--threads", 1, "--decode-workers", 0, "--grace", 600, *more]
        words = [*launcher, f"--master-port={free_port()}", "-m", "teachonce", *command]
        with (tmp_path / "stdout").open("w") as stdout, (tmp_path / "stderr").open("w") as stderr:
            running.append(python.start(*words, stdout=stdout.fileno(), stderr=stderr.fileno()))
        return running[-1]

    yield begin
    for process in running:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def ranks_of(launcher: Any) -> list[int]:
    """Process ids, by rank."""
    found: dict[int, int] = {}
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        environment = dict(
            one.split("=", 1) for one in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in one
        )
        if "LOCAL_RANK" in environment:
            found[int(environment["RANK"])] = int(pid)
    return [found[rank] for rank in sorted(found)]


def is_running(pid: int) -> bool:
    """A process that has ended may wait, as a zombie, for whoever became its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def last_step(out: Path) -> int:
    log = out / "run" / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def wait_for(process: Any, out: Path, step: int) -> None:
    while last_step(out) < step:
        assert process.poll() is None, (out.parent / "stderr").read_text()
        time.sleep(0.02)


def saved(out: Path) -> int:
    with safetensors.safe_open(out / "run" / "checkpoint.safetensors", "pt") as file:
        return int(json.loads(file.metadata()["checkpoint"])["step"])


def said(folder: Path) -> list[str]:
    """Lines of the program, without those of torchrun."""
    return [
        line
        for line in (folder / "stderr").read_text().splitlines()
        if line.startswith(("Error", "Stopped", "distill"))
    ]


@pytest.mark.slow
def test_stopped_killed_and_resumed_it_ends_with_the_bytes_of_undisturbed_ranks(
    start, together, taught_store, tmp_path
) -> None:
    out = tmp_path / "out"
    process = start()
    wait_for(process, out, 20)
    os.kill(ranks_of(process)[1], signal.SIGUSR1)  # to one: they agree
    assert process.wait(300) != 0
    assert said(tmp_path)[-1] == "Stopped by SIGUSR1. What was finished is kept; the same command resumes."
    codes = re.findall(r"exitcode +: (\S+)", (tmp_path / "stderr").read_text())
    assert "75" in codes
    assert set(codes) <= {"75", "-15"}  # torchrun ends those that are still leaving
    at = saved(out)
    assert at >= 20
    process = start()
    wait_for(process, out, at + 10)
    process.send_signal(signal.SIGTERM)  # torchrun hands it on
    process.wait(300)
    assert said(tmp_path)[-1] == "Stopped by SIGTERM. What was finished is kept; the same command resumes."
    at = saved(out)
    process = start("--checkpoint-every", 1)
    wait_for(process, out, at + 5)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    assert process.wait(300) != 0
    at = saved(out)
    process = start("--checkpoint-every", 1)
    wait_for(process, out, at + 3)
    ranks = ranks_of(process)
    process.kill()
    process.wait(300)
    deadline = time.monotonic() + 300
    while any(map(is_running, ranks)):
        assert time.monotonic() < deadline, "a rank is left to itself"
        time.sleep(0.02)
    assert not (out / "ledger" / "distill" / "receipts" / "student.json").exists()
    process = start("--json")
    assert process.wait(300) == 0, (tmp_path / "stderr").read_text()
    assert json.loads((tmp_path / "stdout").read_text())["done_now"] == 1
    chosen = {
        "shards": str(taught_store.shards.location),
        "store": str(taught_store.location),
        "student": STUDENT,
        "recipe": "kd",
        "options": {"projector": "mlp", "epochs": EPOCHS, "batch_size": 8},
        "seed": 3,
    }
    assert together("distill", tmp_path / "ranks", out=str(tmp_path / "calm"), unit_options=chosen) == [0, 0]
    for name in ("model.safetensors", "config.json", "ledger/distill/receipts/student.json"):
        assert (out / name).read_bytes() == (tmp_path / "calm" / name).read_bytes(), name
    assert start("--json").wait(300) == 0
    assert json.loads((tmp_path / "stdout").read_text())["done_before"] == 1


@pytest.mark.slow
def test_an_error_on_one_rank_is_told_once(start, taught_store, tmp_path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(taught_store.shards.location.path, shards)
    tar, record = shards / "000002.tar", ShardSet.open(str(shards)).reader(2).index[3]
    data = bytearray(tar.read_bytes())
    data[int(record["offset"]) + int(record["length"]) // 2] ^= 1
    tar.write_bytes(data)
    assert start(shards=shards).wait(300) != 0
    errors = [line for line in said(tmp_path) if line.startswith("Error")]
    assert len(errors) == 1, errors
    assert "an image in a tar changed" in errors[0]
    assert (tmp_path / "out" / "ledger" / "distill" / "failures" / "student.json").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--workers", "2"), "torchrun has started the processes that train together: --workers: expected"),
        (("--executor", "ray"), "torchrun has started the processes that train together: --executor"),
        (("--ray-address", "auto"), "torchrun has started the processes that train together: --ray-address"),
        (("--unit-timeout", "9"), "torchrun has started the processes that train together: --unit-timeout"),
        (("--seeds", "1,2"), "several students are trained in one process: torchrun"),
    ],
)
def test_what_contradicts_it(taught_store, tmp_path, monkeypatch, words, line) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    command = ["distill", str(taught_store.shards.location), str(taught_store.location), "--student", "timm:test_vit"]
    done = CliRunner().invoke(main, [*command, "--recipe", "kd", "--out", str(tmp_path / "o"), *words])
    assert done.exit_code == 1
    assert line.removesuffix(": expected") in done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Launched(1, 2, 1, 2)),
        ({"LOCAL_WORLD_SIZE": "4"}, Launched(1, 2, 1, 4)),
        ({"LOCAL_RANK": "0"}, Launched(1, 2, 0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"MASTER_PORT": None}, None),
    ],
)
def test_where_it_is(monkeypatch, changes, expected) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in (LAUNCHED | changes).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert Launched.here() == expected


@pytest.mark.parametrize("changes", [{"RANK": "2"}, {"RANK": "x"}, {"WORLD_SIZE": "-1"}])
def test_an_environment_that_names_no_rank(monkeypatch, changes) -> None:
    for name, value in (LAUNCHED | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="the environment names no rank"):
        Launched.here()
