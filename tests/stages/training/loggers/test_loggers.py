"""Figures in other programs: the numbers of log.jsonl, one run after each resume, one group for several students, trouble costs a line."""

from __future__ import annotations

import importlib.util
import json
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.storage import Location
from teachonce.stages.training.loggers import logger as loggers
from teachonce.stages.training.loggers.logger import Guarded, without_secrets
from teachonce.stages.training.loggers.tracked import Tracking
from teachonce.stages.training.run_log import RunLog

KEY = "0123456789abcdef0123456789abcdef01234567"

# wandb and mlflow warn of what their own needs deprecate.
pytestmark = pytest.mark.filterwarnings("ignore")

with_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow-skinny")
with_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Nothing leaves this machine; a key is there that must not be written anywhere."""
    for name, value in (
        ("WANDB_MODE", "offline"),
        ("WANDB_API_KEY", KEY),
        ("WANDB_DIR", str(tmp_path / "elsewhere")),
        ("WANDB_CACHE_DIR", str(tmp_path / "cache")),
        ("WANDB_CONFIG_DIR", str(tmp_path / "config")),
        ("WANDB_DATA_DIR", str(tmp_path / "data")),
        ("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri()),
        ("MLFLOW_ALLOW_FILE_STORE", "true"),
    ):
        monkeypatch.setenv(name, value)
    yield
    assert [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()] == []


@pytest.fixture
def distill(taught_store, tiny_clip, tmp_path):
    """`distill(out, *options)`: what it printed on stderr."""

    def one(out: str, *options: str, code: int = 0) -> str:
        command = ["distill", str(taught_store.shards.location), str(taught_store.location), "--recipe", "kd"]
        command += ["--student", f"local-dir:{tiny_clip}", "--epochs", "2", "--batch-size", "8", "--threads", "1"]
        command += ["--decode-workers", "0", "--device", "cpu", "--reuse-views", "--out", str(tmp_path / out), *options]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == code, done.output + repr(done.exception)
        return done.stderr

    return one


def logged(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "run" / "log.jsonl").read_text().splitlines()]


def mlflow_runs(experiment: str) -> list:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def curve(run: object, name: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    return [(m.step, m.value) for m in MlflowClient().get_metric_history(run.info.run_id, name)]  # type: ignore[attr-defined]


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a `.wandb` file, which is LevelDB's log behind 7 bytes: in blocks of 32 KiB, parts of (crc, size, kind)."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if (left := -at % 32768) < 7 and left:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield parts
            parts = b""


def wandb_lines(folder: Path) -> list[dict]:
    """The figures in the files that `wandb sync` would send."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in sorted(folder.rglob("*.wandb")):
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                found.append(items)
    return found


@pytest.mark.slow
@with_mlflow
@with_wandb
def test_the_figures_of_a_run_arrive_and_decide_no_byte(distill, tmp_path):
    distill("plain")
    told = distill("out", "--mlflow", "birds", "--wandb", "birds")
    assert "no more figures" not in told
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    lines = logged(tmp_path / "out")
    (run,) = mlflow_runs("birds")
    assert (run.info.status, run.info.run_name, run.data.params["recipe"]) == ("FINISHED", "out", "kd")
    assert [step for step, _ in curve(run, "loss")] == [line["step"] for line in lines]
    for name in ("loss", "lr", "epoch"):
        assert [v for _, v in curve(run, name)] == pytest.approx([line[name] for line in lines], rel=1e-5)
    shown = wandb_lines(tmp_path / "out" / "run" / "wandb")
    assert [line["_step"] for line in shown] == [line["step"] for line in lines]
    assert [line["loss"] for line in shown] == pytest.approx([line["loss"] for line in lines], rel=1e-5)
    kept = {name: json.loads((tmp_path / "out" / "run" / f"{name}.json").read_text()) for name in ("mlflow", "wandb")}
    assert kept["mlflow"] == {"experiment": "birds", "id": run.info.run_id}
    assert (
        kept["wandb"]["project"],
        len(list((tmp_path / "out/run/wandb").glob(f"offline-run-*-{kept['wandb']['id']}"))),
    ) == (
        "birds",
        1,
    )


@pytest.mark.slow
@with_mlflow
@with_wandb
def test_a_resumed_run_goes_on_in_the_same_run(tmp_path):
    """As a killed `distill` does: its log is opened at the checkpoint's step, and what lay beyond it comes once more."""
    folder, tracking = Location.of(tmp_path / "run").make_dir(), Tracking(wandb="p", mlflow="e", name="n")
    with RunLog(folder, step=0, tracking=tracking) as log:
        for step in (1, 2, 3):
            log.write(step=step, epoch=0, loss=1 / step)
    (run,) = mlflow_runs("e")
    assert run.info.status == "KILLED"
    time.sleep(1.1)  # wandb names its folders by the second
    with RunLog(folder, step=2, tracking=tracking) as log:
        for step in (3, 4):
            log.write(step=step, epoch=0, loss=1 / step)
        log.finish()
    (again,) = mlflow_runs("e")
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert dict(curve(again, "loss")) == pytest.approx({step: 1 / step for step in (1, 2, 3, 4)})
    kept = json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    folders = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert [kept in folder.name for folder in folders] == [True, True]
    assert {line["_step"]: line["loss"] for line in wandb_lines(tmp_path / "run")} == pytest.approx(
        {step: 1 / step for step in (1, 2, 3, 4)}
    )


@pytest.mark.slow
@with_mlflow
def test_students_of_one_pass_have_a_run_each_and_a_group(distill, tmp_path):
    distill("many", "--seeds", "3,4", "--mlflow", "birds")
    runs = {run.info.run_name: run for run in mlflow_runs("birds")}
    assert set(runs) == {"seed-3", "seed-4"}
    for name, run in runs.items():
        assert (run.data.tags["group"], run.info.status) == ("many", "FINISHED")
        assert [v for _, v in curve(run, "loss")] == pytest.approx(
            [x["loss"] for x in logged(tmp_path / "many" / name)], rel=1e-5
        )


@with_mlflow
def test_an_experiment_that_another_student_makes_at_this_moment(tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient
    from teachonce.stages.training.loggers.mlflow import MLflow

    look = MlflowClient.get_experiment_by_name

    def looks(client, name):
        found = look(client, name)
        time.sleep(0.3)  # the other one looks too, if it may
        return found

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", looks)
    runs = [Tracking(name=name).run("e") for name in "ab"]
    folders = [Location.of(tmp_path / name).make_dir() for name in "ab"]
    with ThreadPoolExecutor(2) as threads:
        for one in threads.map(MLflow, runs, folders):
            one.close(finished=True)
    assert {run.info.run_name for run in mlflow_runs("e")} == {"a", "b"}


@pytest.mark.slow
@with_mlflow
def test_a_server_that_does_not_answer_costs_one_line(distill, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter22@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    told = distill("out", "--mlflow", "birds")
    assert [line for line in told.splitlines() if "no more figures go to MLflow" in line] != []
    assert told.count("no more figures") == 1
    assert "hunter22" not in told
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert len(logged(tmp_path / "out")) == 2


def test_what_is_not_installed_is_told_before_training(distill, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else real(name, *a))
    told = distill("out", "--wandb", "birds", code=1)
    assert told.splitlines()[-1] == (
        "Error: --wandb needs wandb [package-missing]. Next: pip install 'teachonce[wandb]'"
    )


class Broken:
    def __init__(self, at: str) -> None:
        self.at = at
        if at == "open":
            raise RuntimeError("refused")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if self.at == "log":
            raise ValueError(f"no step {step}\nmore")

    def close(self, *, finished: bool) -> None:
        if self.at == "close":
            raise OSError("gone")


@pytest.mark.parametrize(("at", "why"), [("open", "refused"), ("log", "no step 1"), ("close", "gone")])
def test_trouble_is_told_once(capsys, at, why):
    logger = Guarded("X", lambda: Broken(at))
    for step in (1, 2, 3):
        logger.log(step, {"loss": 1.0})
    logger.close(finished=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("distill: no more figures go to X: ")
    assert why in line


@pytest.mark.parametrize("waits_in", ["open", "log"])
def test_a_slow_server_keeps_nobody_waiting(capsys, monkeypatch, waits_in):
    """Figures that do not fit are given up, and so is the end after its time."""
    monkeypatch.setattr(loggers, "_WAITING", 2)
    monkeypatch.setattr(loggers, "_PATIENCE", 0.05)
    go = threading.Event()

    class Slow(Broken):
        def log(self, step: int, figures: Mapping[str, float]) -> None:
            go.wait()

    def opener() -> Slow:
        if waits_in == "open":
            go.wait()
        return Slow("nowhere")

    logger = Guarded("X", opener)
    for step in range(6):
        logger.log(step, {"loss": 1.0})
    logger.close(finished=True)
    go.set()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "distill: no more figures go to X: it does not take figures as fast as they come"


def test_secrets_are_left_out(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
    assert without_secrets("http://me:pass@host/x hunter22 at /tmp") == "http://…@host/x … at /tmp"
