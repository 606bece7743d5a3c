"""The log as JSON lines: of a real command to a file, to stdout, and of one that fails; what units took, and where."""

from __future__ import annotations

import contextlib
import json
import os
import socket

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline import json_log, terminal


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(7):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / f"{i}.png")
    (folder / "8.png").write_bytes(b"no image")
    return folder


def shard(images, *more) -> tuple[int, str, str]:
    words = ["shard", images, "--shard-size", 3, "--out", images.parent / "out", "--executor", "serial", *more]
    done = CliRunner().invoke(main, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


def events(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_command_is_logged_from_its_start_to_its_end(images, tmp_path):
    log = tmp_path / "logs" / "log.jsonl"
    assert shard(images, "--log-json", log)[:2] == (0, "")
    lines = events(log.read_text())
    kinds = [line["event"] for line in lines if line["event"] not in ("message", "progress")]
    assert kinds == ["start", "unit", "unit", "unit", "summary", "end"]
    assert {(line["stage"], line["node"], line["process"]) for line in lines} == {
        ("shard", socket.gethostname(), os.getpid())
    }
    assert all(line["time"].endswith("+00:00") for line in lines)
    units = [line for line in lines if line["event"] == "unit"]
    assert [(u["unit"], u["state"], u["samples"], u["worker"]) for u in units] == [
        (f"00000{i}", "done", samples, f"process {os.getpid()}") for i, samples in enumerate((3, 3, 2))
    ]
    assert sum(u.get("invalid_rows", 0) for u in units) == 1
    out = tmp_path / "out"
    for unit in units:
        timings = json.loads((out / "ledger/shard/timings" / f"{unit['unit']}.json").read_text())
        assert unit["seconds"] == timings
        assert unit["took"] >= sum(timings.values())
        files = [out / f"{unit['unit']}{ending}" for ending in (".tar", ".index.npy")]
        assert unit["bytes"] == sum(file.stat().st_size for file in files)
    summary = next(line for line in lines if line["event"] == "summary")
    assert (summary["units"], summary["samples"], summary["failed"], summary["workers"]) == (3, 8, 0, 1)
    assert summary["bytes"] == sum(unit["bytes"] for unit in units)
    assert lines[-1]["exit_code"] == 0
    messages = [line for line in lines if line["event"] == "message"]
    assert messages[-1]["message"].startswith("Warning: no image has a label") or "3 of 3 units done" in str(messages)
    assert {m["level"] for m in messages if m["message"].startswith("Warning: ")} <= {"warning"}


def test_a_second_command_adds_to_the_file(images, tmp_path):
    log = tmp_path / "log.jsonl"
    for _ in range(2):
        shard(images, "--log-json", log)
    lines = events(log.read_text())
    assert [line["event"] for line in lines].count("end") == 2
    assert "summary" not in [line["event"] for line in lines[len(lines) // 2 + 3 :]]  # nothing was left to do


def test_stdout_has_the_lines_and_nothing_else(images):
    code, stdout, _ = shard(images, "--log-json", "-")
    assert code == 0
    assert [line["event"] for line in events(stdout)][::7] != []
    code, _, stderr = shard(images, "--log-json", "-", "--json")
    assert (code, stderr) == (
        1,
        "Error: two things cannot both have stdout: --json, --log-json - [options-exclude-each-other]. "
        "Next: give --log-json a file\n",
    )


def test_a_failed_unit_and_the_error_at_the_end_are_logged(images, tmp_path):
    log = tmp_path / "log.jsonl"
    shard(images)
    tar = tmp_path / "out" / "000001.tar"
    tar.unlink()
    tar.mkdir()  # in the way of what is to be done anew
    code, _, stderr = shard(images, "--log-json", log)
    assert code == 1
    lines = events(log.read_text())
    failed = next(line for line in lines if line["event"] == "unit" and line["unit"] == "000001")
    assert (failed["level"], failed["state"], failed["worker"]) == ("error", "failed", f"process {os.getpid()}")
    summary = next(line for line in lines if line["event"] == "summary")
    assert (summary["units"], summary["failed"]) == (0, 1)
    assert [(one["count"], one["first"], one.get("code")) for one in summary["failures"]] == [
        (1, "000001", failed.get("code"))
    ]
    assert (lines[-1]["event"], lines[-1]["level"], lines[-1]["exit_code"]) == ("end", "error", 1)
    assert f"[{lines[-1]['code']}]" in stderr


def test_inside_its_block_only_people_s_lines_are_heard(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    terminal.say("before")
    with json_log.log_to(str(log), "cache"):
        terminal.say("Warning: so")
        terminal.say("it ended", level="warning")
        terminal.say("a bar", heard=False)
        json_log.event("unit", "000000 is done", node="elsewhere", code=None)
    terminal.say("behind")
    json_log.event("unit", "behind")
    assert [(e["event"], e["message"], e["level"]) for e in events(log.read_text())] == [
        ("message", "Warning: so", "warning"),
        ("message", "it ended", "warning"),
        ("unit", "000000 is done", "info"),
    ]
    assert events(log.read_text())[-1]["node"] == "elsewhere"
    assert "code" not in events(log.read_text())[-1]
    assert len(capsys.readouterr().err.splitlines()) == 5


@pytest.mark.parametrize(("rank", "logs"), [("0", True), ("1", False)])
def test_of_processes_that_torchrun_starts_the_first_alone_logs(rank, logs, tmp_path, monkeypatch):
    for name, value in {
        "RANK": rank,
        "WORLD_SIZE": "2",
        "LOCAL_RANK": rank,
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("teachonce.pipeline.executors.launched.Launched.follow", lambda *_: None)
    monkeypatch.setattr("teachonce.pipeline.executors.launched.Launched.leading", lambda _: contextlib.nullcontext())
    words = [
        "distill",
        "shards",
        "t.zarr",
        "--student",
        "timm:test_vit",
        "--recipe",
        "kd",
        "--out",
        str(tmp_path / "s"),
    ]
    CliRunner().invoke(main, [*words, "--log-json", str(tmp_path / "log.jsonl")])
    assert (tmp_path / "log.jsonl").exists() is logs


def test_every_long_command_has_the_option_once():
    long = {"anomalies", "labels", "shard", "vectors", "pretrain", "cache", "captions", "distill"}
    long |= {"verify", "recode", "retry-failed"}
    having = {
        name
        for name, command in main.commands.items()
        if sum("--log-json" in parameter.opts for parameter in command.params) == 1
    }
    assert having == long
