"""Patterns of names against the shell's own braces and Python's glob."""

from __future__ import annotations

import glob
import subprocess

import pytest
from teachonce.pipeline.storage import Location
from teachonce.stages.corpora import patterns
from teachonce.stages.corpora.patterns import is_pattern, matched
from teachonce.storage_schemas.errors import InputError


@pytest.mark.parametrize("pattern", ["x/{000..012}.tar", "{a,b}/{1..3}.tar", "a{,b}.tar", "x/{2..0}.tar"])
def test_braces_are_bashs(pattern):
    by_bash = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, check=True).stdout.decode().split()
    assert [found.path for found in matched(pattern)] == by_bash


@pytest.mark.parametrize(
    "pattern", ["*.tar", "?/*.tar", "*/00[12].tar", "a/00?.tar", "*/deep/*.tar", "{a,b}/*1.tar", ".*.tar"]
)
def test_wildcards_are_globs(pattern, tmp_path):
    for name in ("a/001.tar", "a/002.tar", "b/001.tar", "b/deep/003.tar", "c.tar", ".hidden.tar", "a/note.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = list(matched(f"{tmp_path}/{pattern}"))
    spelled = [f"{tmp_path}/{p}" for p in ([pattern] if "{" not in pattern else ["a/*1.tar", "b/*1.tar"])]
    assert [one.path for one in found] == [path for one in spelled for path in sorted(glob.glob(one))]  # noqa: PTH207  # shells hide names with a dot, pathlib does not
    begins = len(str(tmp_path)) + 1 + (2 if pattern.startswith("a/") else 0)
    assert [one.name for one in found] == [one.path[begins:].removesuffix(".tar") for one in found]


def test_a_file_of_that_very_name_is_no_pattern(tmp_path):
    path = tmp_path / "[1].tar"
    assert is_pattern(str(path))
    path.touch()
    assert not is_pattern(str(path))
    assert not is_pattern("s3://bucket/plain.tar")
    assert is_pattern("s3://bucket/{0..9}.tar")


@pytest.mark.parametrize("pattern", ["{0..99999999}.tar", "{5..-999999}.tar", "{0..9999999..9}.tar"])
def test_too_many_names(pattern):
    with pytest.raises(InputError, match="a pattern stands for too many names: .*: expected 1000000 at most"):
        list(matched(pattern))


def test_too_many_names_of_several_braces(monkeypatch):
    """Only spelling them out tells; a million names take half a minute."""
    monkeypatch.setattr(patterns, "_MOST", 199)
    with pytest.raises(InputError, match="a pattern stands for too many names: .*: expected 199 at most"):
        list(matched("{0..9}{0..9}{a,b}.tar"))


def test_steps_are_not_counted_as_names():
    assert [one.path for one in matched("{0..9000000..3000000}.tar")] == [
        f"{i}.tar" for i in range(0, 9000001, 3000000)
    ]


@pytest.mark.parametrize(
    ("folder", "file", "way"),
    [
        ("/a/index", "/a/tars/0.tar", "../tars/0.tar"),
        ("/a/index", "/a/index/0.tar", "0.tar"),
        ("/a/index", "/a/index2/0.tar", "../index2/0.tar"),
        ("/a/index", "/b/0.tar", "/b/0.tar"),
        ("/index", "/b/0.tar", "/b/0.tar"),
        ("s3://b/index", "s3://b/0.tar", "../0.tar"),
        ("s3://b/x/index", "s3://b/0.tar", "s3://b/0.tar"),
        ("s3://b/index", "s3://c/0.tar", "s3://c/0.tar"),
        ("s3://b/index", "/a/0.tar", "/a/0.tar"),
        ("/a/index", "s3://b/0.tar", "s3://b/0.tar"),
    ],
)
def test_the_way_from_a_folder_to_a_file(folder, file, way):
    start, goal = Location.of(folder), Location.of(file)
    assert start.way_to(goal) == way
    assert start.reach(way) == goal
