"""The fault table: its page has what is in the code, its choices can be repeated; and some of its fastest faults."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def part(monkeypatch):
    """`part("kills")`: a module of the folder `faults`."""
    monkeypatch.syspath_prepend(HERE)
    return lambda name: importlib.import_module(f"faults.{name}")


def test_the_page_has_every_fault_of_the_code_as_it_went_last(part):
    table = part("table")
    page = table.PAGE.read_text(encoding="utf-8")
    assert page == table.with_tables(page), "python tests/faults --table"
    names = [fault.name for fault in part("all_faults").FAULTS]
    assert len(set(names)) == len(names)
    assert set(table.results()) <= set(names)
    assert all(f"| {name} |" in page for name in names)


def test_what_did_not_go_as_it_must_is_said_in_its_row(part, monkeypatch, tmp_path):
    table, fault = part("table"), part("all_faults").FAULTS[0]
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(table, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("a\n<!-- written by make faults -->\nof before\n<!-- end -->\nb\n")
    table.record(fault, "no", "3 files | differ")
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("a\n<!--")
    assert page.endswith("-->\nb\n")
    assert "of before" not in page
    assert f"| {fault.name} | {fault.provoked} | {fault.must} | **not so**: 3 files &#124; differ |" in page
    assert page.count("| not run yet |") == len(part("all_faults").FAULTS) - 1


def test_a_case_depends_on_the_seed_the_way_and_its_number_alone(part):
    kills, ways = part("kills"), part("ways").WAYS
    drawn = {(way.name, seed, i): kills.case(way, i, seed) for way in ways for seed in (0, 1) for i in range(5)}
    assert kills.case(ways[3], 4, 1) == drawn[ways[3].name, 1, 4]
    assert len({str(points) for points in drawn.values()}) == len(drawn)
    assert all(0 <= point.at < 1 and point.whom in way.whom for way in ways for point in drawn[way.name, 0, 0])
    assert sum(kills.quotas(200).values()) >= 200
    assert min(kills.quotas(1).values()) == 1


def test_faults_are_chosen_by_parts_of_names_and_patterns(part):
    select = part("runner").select
    assert len(select([])) == len(part("all_faults").FAULTS)
    assert [f.name for f in select(["disk full: shard"])] == ["disk full: shard"]
    assert {f.name for f in select(["*: recode"])} >= {"disk full: recode", "no inodes: recode"}
    assert select(["no such"]) == []


def test_bytes_that_differ_and_files_too_many_are_found(part, tmp_path):
    room, unmet = part("room"), part("fault").Unmet
    for name in ("calm", "found"):
        (tmp_path / name / "timings").mkdir(parents=True)
        (tmp_path / name / "timings" / "a").write_text(name)
        (tmp_path / name / "a").write_text("a")
    room.check_same(tmp_path / "found", tmp_path / "calm")
    (tmp_path / "found" / "b.tmp").write_text("")
    with pytest.raises(unmet, match="1 files differ from an undisturbed run's: b.tmp"):
        room.check_same(tmp_path / "found", tmp_path / "calm")


@pytest.mark.parametrize(
    ("code", "stderr", "problem"),
    [
        (1, "Traceback (most recent call last)\nError: x", "a traceback: Error: x"),
        (0, "Error: x", "exit code 0 instead of 1: Error: x"),
        (1, "bar\nwhatever", "no error line: whatever"),
        (1, "Error: x [y]", "`full` is not said: Error: x .y."),
    ],
)
def test_an_end_that_is_no_clear_line_is_found(part, code, stderr, problem):
    room = part("programs")
    with pytest.raises(part("fault").Unmet, match=f"^{problem}$"):
        room.check_one_line(room.Done(code, "", stderr), "full")
    assert room.check_one_line(room.Done(1, "", "bar\nError: full [x]"), "full") == "Error: full [x]"


@pytest.mark.parametrize(
    ("at", "whom", "code"), [(2, "group", -signal.SIGKILL), (2, "self", -signal.SIGKILL), (4, "self", 0)]
)
def test_the_hook_counts_what_is_done_in_a_folder_and_acts_there(part, tmp_path, at, whom, code):
    orders = part("orders")
    for name in ("control", "out"):
        (tmp_path / name).mkdir()
    room = SimpleNamespace(control=tmp_path / "control")
    orders.order(room, tmp_path / "out", at, whom=whom)
    program = "\n".join(
        f"open({str(tmp_path / 'out' / str(i))!r}, 'w'); open({str(tmp_path / 'x')!r}, 'w')" for i in range(3)
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"FAULTS_CONTROL": str(tmp_path / "control"), "PYTHONPATH": str(HERE / "faults" / "hook")},
        start_new_session=True,
    )
    assert done.returncode == code
    assert (tmp_path / "control" / "count").stat().st_size == (3 if code == 0 else 2)
    assert len(list((tmp_path / "out").iterdir())) == (3 if code == 0 else 1)
    assert (tmp_path / "control" / "acted").exists() == (code != 0)
    assert json.loads((tmp_path / "control" / "order.json").read_text())["folder"] == str(tmp_path / "out")


@pytest.mark.slow
def test_some_of_them(part, tmp_path_factory, monkeypatch):
    """Killed at random points, and an output that finds no room: on drawn pictures, as `make faults` does it."""
    room = part("room").Room(folder=tmp_path_factory.mktemp("room"), images=Path())
    room.images = part("images").lay_out(room.folder / "images", None)
    room.kills = 1
    faults = {fault.name: fault for fault in part("all_faults").FAULTS}
    try:
        assert "the same bytes" in faults["kill -9: shard, one process"].run(room)
        assert "the same bytes" in faults["disk full: recode"].run(room)
    except part("fault").Lacking as lack:
        pytest.skip(str(lack))
