"""Names and labels from strangers' files never reach a terminal raw: not in errors, notes, tables or JSON."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.commands.output import print_json
from teachonce.storage_schemas.errors import InputError
from teachonce.storage_schemas.plain_text import printable, printable_lines

#: Clears the screen, sets the window's title, rings, starts a sequence with one C1 byte, turns the direction of writing.
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\r\x7f"


def controls(text: str) -> list[str]:
    return sorted({c for c in text if not c.isprintable()} - {"\n"})


def run(*words: object) -> tuple[int, str]:
    """Exit code, and all that a terminal would get."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    return result.exit_code, result.stdout + result.stderr


def test_an_error_is_one_line_of_plain_text() -> None:
    error = InputError(
        "no such " + EVIL,
        code="no-such-evil",
        where=EVIL,
        expected=EVIL,
        found="a\nb\tc" + EVIL,
        hint="ls " + EVIL,
    )
    assert controls(str(error)) == []
    assert "\n" not in str(error)
    assert "a b c\\x1b[2J" in str(error)
    assert printable("Ä 日本 é") == "Ä 日本 é"
    assert printable_lines("a\nb\x1b") == "a\nb\\x1b"


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", EVIL],
        ["status", EVIL],
        ["evaluate", EVIL, EVIL],
        ["predict", EVIL, EVIL],
        ["run", f"{EVIL}.yaml"],
        ["shard", EVIL, "--out", "out"],
        ["models", EVIL],
        ["datasets", EVIL],
        ["distill", EVIL, EVIL, "--student", EVIL, "--recipe", "kd", "--out", "out"],
        ["vectors", "--teacher", EVIL, "--out", "out"],
        ["vectors", "--teacher", f"timm:{EVIL}", "--out", "out"],
        ["vectors", "--teacher", f"local-dir:{EVIL}", "--out", "out"],
        [EVIL],
        ["shard", "x", "--executor", EVIL, "--out", "out"],
        ["cache", "x", "--view-scale", EVIL, "--out", "out"],
    ],
)
def test_what_was_typed_comes_back_harmless(words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = run(*words)
    assert code in (1, 2)
    assert controls(text) == []


@pytest.fixture
def evil_tar(tmp_path: Path) -> Path:
    """Images whose names, folders and labels are terminal codes; one of them is broken."""
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for index in range(4):
            buffer = BytesIO()
            Image.new("RGB", (24, 24), (60 * index, 80, 90)).save(buffer, "JPEG")
            data = buffer.getvalue() if index else b"\xff\xd8\xff broken"
            info = tarfile.TarInfo(f"{EVIL}{index % 2}/{EVIL}{index}.jpg")
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    return tmp_path / "photos.tar"


def test_what_lies_in_files_comes_out_harmless(evil_tar, tmp_path) -> None:
    shards, store = tmp_path / "shards", tmp_path / "s.zarr"
    told = run("shard", evil_tar, "--executor", "serial", "--out", shards)[1]
    teacher = [
        "--teacher",
        "timm:test_resnet",
        "--teacher-pretrained",
        "random",
        "--threads",
        1,
        "--out",
        store,
    ]
    told += run("vectors", *teacher)[1]
    told += run("cache", shards, *teacher, "--targets", "both", "--executor", "serial")[1]
    for words in (
        ["status", shards],
        ["status", store],
        ["inspect", store],
        ["inspect", shards],
        ["inspect", store, "0"],
    ):
        told += run(*words)[1]
    told += run(
        "vectors",
        "--teacher",
        "timm:test_resnet",
        "--teacher-pretrained",
        "random",
        "--classes",
        shards,
        "--out",
        tmp_path / "v.zarr",
    )[1]
    assert controls(told) == []
    code, text = run("status", shards, "--json")
    assert (code, controls(text)) == (0, [])
    json.loads(text)


def test_json_says_the_same_in_escapes(capsys) -> None:
    value = {EVIL: [EVIL, "\ud83d", "Ä 日本"]}
    print_json(value)
    text = capsys.readouterr().out
    assert controls(text) == []
    assert "Ä 日本" in text
    assert json.loads(text) == value
