"""What errors and reports tell to type next works when it is pasted, whatever the paths hold."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main

#: A blank, two blanks, an apostrophe, and what a shell would expand.
AWKWARD = ["my {}", "two  blanks {}", "it's {}", "$HOME {}"]


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(word) for word in words])
    return result.exit_code, result.stdout + result.stderr


def photos(folder: Path, *, broken: bool = False) -> Path:
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for i in range(2):
            if broken:
                (folder / label / f"{i}.png").write_bytes(b"nothing")
            else:
                Image.new("RGB", (24 + i, 20), (i, len(label), 90)).save(folder / label / f"{i}.png")
    return folder


def typed_next(text: str) -> list[str]:
    """The words of the last command that the text tells to type, as a shell reads them; what follows it comes along."""
    _, _, command = text.rstrip("\n").rpartition("teachonce ")
    words = shlex.split(command.partition("`")[0])
    return [word.rstrip(",.)") for word in words]


@pytest.fixture(params=AWKWARD)
def names(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return request.param.format


def test_hints_of_what_is_missing_or_another_kind(names):
    photos(Path(names("photos")))
    code, text = run(
        "cache",
        names("photos"),
        "--teacher",
        "timm:test_vit",
        "--teacher-pretrained",
        "random",
        "--out",
        names("t"),
    )
    assert (code, typed_next(text)[:4]) == (
        1,
        ["shard", names("photos"), "--out", f"{names('photos')}-shards"],
    )
    code, _ = run(*typed_next(text)[:4], "--executor", "serial")  # pasted, it works
    assert code == 0
    shards = f"{names('photos')}-shards"
    code, text = run("status", shards)
    assert (code, typed_next(text)[:2]) == (0, ["cache", shards])
    words = ("--student", "timm:test_resnet", "--recipe", "kd", "--out", names("b"))
    for given, told in (
        ((shards, names("no store")), ["cache", "SHARDS", "--teacher", "…", "--out", names("no store")]),
        ((names("none"), names("no store")), ["shard", "CORPUS", "--out", names("none")]),
    ):
        code, text = run("distill", *given, *words)
        assert (code, typed_next(text)) == (1, told)
    code, text = run("evaluate", names("no bundle"), shards)
    assert (code, typed_next(text)[-2:]) == (1, ["--out", names("no bundle")])


def test_hints_of_what_is_there_already(names):
    teacher = ("--teacher", "timm:test_vit", "--teacher-pretrained", "random")
    assert run("shard", photos(Path(names("photos"))), "--out", names("s"), "--executor", "serial")[0] == 0
    assert run("vectors", *teacher, "--out", names("t"))[0] == 0
    code, text = run("shard", names("photos"), "--out", names("s"), "--executor", "serial", "--name", "other")
    assert code == 1
    code, text = run("distill", names("t"), names("s"), "--student", "x", "--recipe", "kd", "--out", names("b"))
    assert (code, typed_next(text)[:3]) == (1, ["distill", names("s"), names("t")])
    receipt = Path(names("s")) / "ledger/shard/receipts/000000.json"
    receipt.write_text(json.dumps({**json.loads(receipt.read_bytes()), "rows": 3}))
    code, text = run("cache", names("s"), *teacher, "--out", names("t"), "--executor", "serial")
    assert code == 1
    words = shlex.split(text.partition("mv ")[2].partition("`")[0])
    assert [word.rstrip(",") for word in words[:2]] == [str(receipt), f"{receipt}.old"]


def test_hints_of_work_that_failed(names):
    photos(Path(names("photos")), broken=True)
    code, text = run("shard", names("photos"), "--out", names("s"), "--executor", "serial")
    assert (code, typed_next(text)[:2]) == (1, ["status", names("s")])
    assert run(*typed_next(text)[:2])[0] == 0
