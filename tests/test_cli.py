"""The program as a whole: help, the contract of names and options, errors, and cheap start-up."""

from __future__ import annotations

import errno
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner
from teachonce import __version__
from teachonce.cli import Program, main
from teachonce.storage_schemas.errors import IncompleteError, InputError, MismatchError

CHECKOUT = Path(__file__).parent.parent
UNIT_COMMANDS = {"anomalies", "shard", "cache", "recode", "retry-failed"}
REPORTS = {"shard", "vectors", "cache", "distill", "evaluate", "predict", "inspect", "status", "run", "demo"}
REPORTS |= {"anomalies", "datasets", "export", "import", "models", "recode", "retry-failed", "verify"}
HEAVY = {"torch", "torchvision", "ray", "zarr", "numcodecs", "open_clip", "timm", "numpy", "pyarrow", "PIL"}
HEAVY |= {"webdataset", "safetensors", "yaml", "tqdm", "tensorboard", "obstore"}


def reference_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_cli_reference", CHECKOUT / "docs" / "make_cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(command: str) -> set[str]:
    return {name for parameter in main.commands[command].params for name in parameter.opts}


def test_every_command_has_help_and_says_what_its_options_mean() -> None:
    for name, command in main.commands.items():
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0, result.output
        assert command.help, f"{name} has no docstring"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts[0]} has no help"


def test_misspelt_choices_are_answered_with_the_nearest() -> None:
    """Whatever takes a choice takes ours, which knows the nearest; one of them is tried."""
    for name, command in main.commands.items():
        for parameter in command.params:
            assert type(parameter.type) is not click.Choice, f"{name} {parameter.name}"
    answer = CliRunner().invoke(main, ["shard", ".", "--out", "o", "--order", "sorce"])
    assert (answer.exit_code, answer.stderr.splitlines()[-1].rpartition(". ")[2]) == (
        2,
        "Did you mean source?",
    )


def test_the_contract_of_names_and_options() -> None:
    assert set(main.commands) >= UNIT_COMMANDS | REPORTS
    assert {
        n for n in main.commands if "--executor" not in options(n) or "--ray-address" not in options(n)
    } & UNIT_COMMANDS == set()
    assert {n for n in REPORTS if "--json" not in options(n)} == set()
    assert {"--out", "--shard-size", "--name", "--resize"} <= options("shard")
    assert {"--teacher", "--teacher-pretrained", "--classes", "--templates", "--out"} <= options("vectors")
    assert {"--teacher", "--teacher-pretrained", "--out", "--views", "--targets"} <= options("cache")
    assert {"--student", "--student-pretrained", "--recipe", "--out"} <= options("distill")
    assert "--base-classes" in options("evaluate")


def test_the_command_reference_is_current() -> None:
    script = reference_script()
    written = script.REFERENCE.read_text(encoding="utf-8")
    assert written == script.reference(), "docs/cli.md is out of date. Next: make docs"
    for name in main.commands:
        assert f"## `teachonce {name}`" in written


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert (result.exit_code, result.output) == (0, f"teachonce, version {__version__}\n")


def test_help_of_every_command_imports_nothing_heavy() -> None:
    # One fresh interpreter for all commands: what none of them imports, each of them does not import.
    code = """
import json, sys
from click.testing import CliRunner
from teachonce.cli import main
for words in ([], *([name] for name in main.commands)):
    assert CliRunner().invoke(main, [*words, "--help"]).exit_code == 0, words
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(HEAVY & set(json.loads(done.stdout))) == []


def test_module_and_command_are_the_same_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "teachonce", "nonsense"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert "No such command 'nonsense'" in done.stderr
    assert done.stdout == ""


def failing(error: Callable[[], BaseException]) -> click.Group:
    @click.group(cls=Program)
    def program() -> None:
        pass

    @program.command()
    def fail() -> None:
        raise error()

    return program


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            InputError("no images", code="images-missing", where="photos", hint="give a folder"),
            "Error: no images: photos [images-missing]. Next: give a folder\n",
        ),
        (
            MismatchError("another teacher", code="another-teacher", where="'name'", expected="A", found="B"),
            "Error: another teacher: 'name': expected A, found B [another-teacher]\n",
        ),
        (
            IncompleteError("shard has not\nfinished", code="stage-unfinished", where="x", found="1 of 2 units"),
            "Error: shard has not finished: x: found 1 of 2 units [stage-unfinished]\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.tar"),
            "Error: the disk is full: x.tar [disk-full]. "
            "Next: free some space, then run the same command again; finished work is kept\n",
        ),
    ],
)
def test_errors_of_ours_are_one_line_and_exit_with_1(error: BaseException, line: str) -> None:
    result = CliRunner().invoke(failing(lambda: error), ["fail"])
    assert (result.exit_code, result.stderr, result.stdout) == (1, line, "")


def test_bugs_keep_their_traceback() -> None:
    result = CliRunner().invoke(failing(lambda: ZeroDivisionError("bug")), ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize("writes", [True, False])
def test_ctrl_c_exits_with_130_and_says_that_work_is_kept_where_there_is_some(writes: bool) -> None:
    program = failing(KeyboardInterrupt)
    if writes:
        program.commands["fail"].params.append(click.Option(["--out"], expose_value=False))
    result = CliRunner().invoke(program, ["fail"])
    kept = " What was finished is kept; the same command resumes." if writes else ""
    assert (result.exit_code, result.stderr) == (130, f"Interrupted.{kept}\n")


def test_what_the_rows_of_a_stage_are_is_said_in_words(tmp_path):
    out = str(tmp_path / "my store")
    words = [
        "vectors",
        "--teacher",
        "timm:test_vit",
        "--teacher-pretrained",
        "random",
        "--executor",
        "serial",
    ]
    result = CliRunner().invoke(main, [*words, "--out", out])
    assert result.exit_code == 0, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last == f"vectors: 1 of 1 unit done; 1000 classes now. Output: {out}"
    assert "img" not in result.stderr
    again = CliRunner().invoke(main, ["status", out])
    assert "classes      1000 done" in again.stdout
    assert f"Next: teachonce cache SHARDS --teacher … --out '{out}'" in again.stdout
