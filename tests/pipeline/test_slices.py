"""Slices share out the units of a stage; what belongs to all of it, or to slices of another number, is kept apart from them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from teachonce.pipeline.driver import drivers_of, only_driver
from teachonce.pipeline.slices import Slice
from teachonce.pipeline.storage import Location
from teachonce.stages.status import folder_status, status_text
from teachonce.storage_schemas.errors import BusyError, InputError

#: Holds a slice: sets up when a line comes, and ends when stdin does.
HOLD = """
import sys
from teachonce.pipeline.driver import only_driver, set_up
from teachonce.pipeline.slices import Slice
from teachonce.pipeline.storage import Location
out = Location.of(sys.argv[1])
with only_driver(out, "teachonce cache", Slice.parse(sys.argv[2])):
    print("begun", flush=True)
    sys.stdin.readline()
    set_up(out)
    print("set up", flush=True)
    sys.stdin.read()
"""


class Holder:
    """A process that does a slice."""

    def __init__(self, popen, out: Path, part: str) -> None:
        self.process = popen([sys.executable, "-c", HOLD, str(out), part])
        self.stderr = self.process.stderr

    def reads(self) -> str:
        return self.process.stdout.readline().strip()

    def set_up(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.reads() == "set up"

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def hold(tmp_path):
    import subprocess

    made = []

    def popen(command):
        pipe = subprocess.PIPE
        made.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return made[-1]

    yield lambda part: Holder(popen, tmp_path / "out", part)
    for process in made:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("text", "numbers"), [("0/3", [0, 3, 6]), ("2/3", [2, 5]), ("0/1", list(range(8))), ("8/9", [])]
)
def test_units_go_round(text, numbers) -> None:
    assert list(Slice.parse(text).of(range(8))) == numbers
    assert str(Slice.parse(text)) == text


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "2/2", "3/2", "-1/2", "0/0", "a/b", "1/2/3", "½/2"])
def test_no_slice(text) -> None:
    with pytest.raises(InputError) as error:
        Slice.parse(text)
    assert error.value.code == "slice-malformed"


def test_slices_work_side_by_side_once_one_has_set_up(hold, tmp_path) -> None:
    out = Location.of(tmp_path / "out")
    first = hold("0/3")
    assert first.reads() == "begun"
    second = hold("1/3")
    assert second.stderr.readline().startswith(f"waiting for what sets {out} up: teachonce cache, slice 0/3, process ")
    first.set_up()
    assert second.reads() == "begun"
    second.set_up()
    assert [driver.slice for driver in drivers_of(out)] == ["0/3", "1/3"]
    facts = folder_status(str(out))
    assert list(facts["running"]) == [f"{out} (slice 0/3)", f"{out} (slice 1/3)"]
    assert f", in {out} (slice 1/3)" in status_text(facts)


@pytest.mark.parametrize("part", [None, Slice(0, 2), Slice(0, 3)])
def test_what_would_do_the_same_units_is_refused(hold, tmp_path, part) -> None:
    """A command for all units, a slice of another number, and the same slice once more."""
    out = Location.of(tmp_path / "out")
    holder = hold("0/3")
    holder.reads()
    holder.set_up()
    with pytest.raises(BusyError) as error, only_driver(out, "teachonce cache", part):
        pass
    assert str(error.value.found).startswith(f"teachonce cache, slice 0/3, process {holder.process.pid} on ")
    with only_driver(out, "teachonce cache", Slice(1, 3)):
        assert {driver.slice for driver in drivers_of(out)} == {"0/3", "1/3"}
    holder.end()
    with only_driver(out, "teachonce cache", part):
        pass
    assert drivers_of(out) == []


def test_a_slice_is_refused_where_all_units_are_being_done(tmp_path) -> None:
    import subprocess

    out = Location.of(tmp_path / "out")
    code = (
        "import sys; from teachonce.pipeline.driver import only_driver; from teachonce.pipeline.slices import Slice\n"
        "from teachonce.pipeline.storage import Location\n"
        "with only_driver(Location.of(sys.argv[1]), 'teachonce cache', Slice(0, 2)): pass"
    )
    with only_driver(out, "teachonce cache"):
        done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "another command is writing there" in done.stderr


def test_a_killed_slice_holds_nothing(hold, tmp_path) -> None:
    out = Location.of(tmp_path / "out")
    for ready in (False, True):
        holder = hold("0/3")
        holder.reads()
        if ready:
            holder.set_up()
        holder.process.kill()
        holder.process.wait()
        assert drivers_of(out) == []
        with only_driver(out, "teachonce cache", Slice(0, 3)):
            assert [driver.slice for driver in drivers_of(out)] == ["0/3"]
    with only_driver(out, "teachonce cache"):
        assert [driver.slice for driver in drivers_of(out)] == [""]
    assert not (out / "ledger" / "slices").exists()
