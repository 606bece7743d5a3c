"""What a person meant: misspelt words are answered with the nearest, `~` is a home wherever a path begins."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.commands.command import expand_homes
from teachonce.pipeline.storage import Location
from teachonce.stages.inputs.image_set import open_images
from teachonce.stages.models.clip_source import resolve_clip
from teachonce.stages.models.timm_models import resolve_timm
from teachonce.stages.teachers import TeacherConfig
from teachonce.storage_schemas.errors import InputError


def last_line(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(words))
    return result.exit_code, result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("cahce shards", "cache"),
        ("benchmark promtkd", "promptkd"),
        ("distill a b --student x --recipe promtkd --out o", "promptkd"),
        ("distill a b --student x --recpie kd --out o", "--recipe"),
        ("distill a b --student x --recipe kd --schedule cosin --out o", "cosine"),
        ("benchmark promptkd --data . --protocol base2nov", "base2novel"),
        ("benchmark promptkd --data . --protocol base2novel --datasets oxford-pet", "oxford_pets"),
        ("cache shards --teacher x --targets logit --out o", "logits"),
        ("cache shards --teacher x --device CUDA --out o", "cuda"),
        ("shard coop:oxfrd_pets/train=. --out o", "oxford_pets"),
        ("shard coop:oxford_pets/trian=. --out o", "train"),
        ("shard fotos --out o", "photos"),
        ("vectors --teacher ViT-B-23 --teacher-pretrained openai --classes imagenet --out o", "ViT-B-32"),
        ("vectors --teacher tim:resnet18 --classes imagenet --out o", "timm:resnet18"),
        ("vectors --teacher techonce:p --classes imagenet --out o", "teachonce:p"),
        ("vectors --teacher ViT-B-32 --teacher-pretrained opnai --classes imagenet --out o", "openai"),
        ("vectors --teacher timm:resnet18 --teacher-pretrained a1_in1 --out o", "a1_in1k"),
        ("vectors --teacher timm:test_vit --teacher-pretrained random --classes imagnet --out o", "imagenet"),
        ("run rnu.yaml", "run.yaml"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(tmp_path, monkeypatch, words, meant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "run.yaml").write_text("stages: []")
    code, line = last_line(*shlex.split(words))
    assert code != 0
    assert f"id you mean {meant}" in line.replace("'", "") or f"'{meant}'" in line.partition("id you mean")[2], line


@pytest.mark.parametrize(("name", "meant"), [("ViT-B-23", "ViT-B-32"), ("rn50", "RN50"), ("local-dr:x", "local-dir:x")])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_teachers_are_guessed_as_students_are(role, name, meant):
    with pytest.raises(InputError, match=f"did you mean .*{meant}"):
        resolve_clip(name, "openai", role=role)
    with pytest.raises(InputError, match="did you mean resnet18"):
        resolve_timm("timm:resnet_18", None, role=role)


@pytest.mark.parametrize(
    ("word", "full"),
    [
        ("~/x", "HOME/x"),
        ("~", "HOME"),
        ("--out=~/x", "--out=HOME/x"),
        ("pets=~/x", "pets=HOME/x"),
        ("local-dir:~/x", "local-dir:HOME/x"),
        ("teachonce:~/p", "teachonce:HOME/p"),
        ("coop:oxford_pets/train=~/data", "coop:oxford_pets/train=HOME/data"),
        ("a=coop:oxford_pets/train=~/data", "a=coop:oxford_pets/train=HOME/data"),
        ("--teacher=local-dir:~/x", "--teacher=local-dir:HOME/x"),
        ("a~/x", "a~/x"),
        ("./~/x", "./~/x"),
        ("~x", "~x"),
        ("https://host/~/x", "https://host/~/x"),
        ("x/a=~/y", "x/a=~/y"),
    ],
)
def test_homes_in_words_of_a_command(word, full):
    assert expand_homes(word) == full.replace("HOME", str(Path.home()))


def test_homes_in_programs_lists_and_run_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Location.of("~/photos").path == tmp_path / "photos"
    assert Location.of("~nobody-has-this-name/x").path.name == "x"
    assert TeacherConfig.of("local-dir:~/m").model == f"local-dir:{tmp_path}/m"
    (tmp_path / "weights.pt").touch()
    assert TeacherConfig.of("ViT-B-32", "~/weights.pt").pretrained == str(tmp_path / "weights.pt")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"picture")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.txt").write_text("~/photos/a.jpg\n")
    (picture,) = open_images(str(tmp_path / "lists" / "list.txt")).pictures()
    assert (picture.path, picture.read()) == ("~/photos/a.jpg", b"picture")
    (tmp_path / "run.yaml").write_text("stages: [{status: {path: ~/photos}}]")
    code, line = last_line("run", str(tmp_path / "run.yaml"))
    assert code == 1
    assert line.startswith(f"Error: no stage of teachonce has started here: {tmp_path}/photos [nothing-started].")
