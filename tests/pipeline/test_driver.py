"""One command at a time writes to an output; a holder that is gone holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from teachonce.pipeline.driver import Driver, drivers_of, only_driver
from teachonce.pipeline.storage import Location
from teachonce.stages.status import exit_code, folder_status, status_text
from teachonce.storage_schemas.errors import BusyError, InputError


def driver_of(out):
    """The one that there is, or None."""
    (*found,) = drivers_of(out)
    assert len(found) <= 1
    return found[0] if found else None


HOLD = """
import sys, time
from teachonce.pipeline.driver import only_driver
from teachonce.pipeline.storage import Location
with only_driver(Location.of(sys.argv[1]), "teachonce cache"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that drives `tmp_path / "out"` until its stdin closes, or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    if not process.stdin.closed:
        process.stdin.close()


def test_a_second_driver_is_told_who_the_first_is(holder, tmp_path) -> None:
    out = Location.of(tmp_path / "out")
    found = driver_of(out)
    assert (found.command, found.pid) == ("teachonce cache", holder.pid)
    with pytest.raises(BusyError) as error, only_driver(out, "teachonce vectors"):
        pass
    assert error.value.fields == {
        "code": "output-busy",
        "where": str(out),
        "expected": "one at a time",
        "found": f"teachonce cache, process {holder.pid} on {found.host}, since {found.since}",
        "hint": f"wait for it: teachonce status {out}",
    }
    holder.stdin.close()
    holder.wait()
    with only_driver(out, "teachonce vectors"):
        assert driver_of(out).pid == os.getpid()
    assert driver_of(out) is None
    assert not out.exists(), "nothing is left of it"


def test_status_says_who_is_running(holder, tmp_path) -> None:
    facts = folder_status(str(tmp_path / "out"))
    assert facts["running"][str(Location.of(tmp_path / "out"))]["pid"] == holder.pid
    assert (facts["state"], exit_code(facts)) == ("units left", 3)
    assert f"running: teachonce cache, process {holder.pid} on " in status_text(facts)
    holder.kill()
    holder.wait()
    with pytest.raises(InputError) as error:
        folder_status(str(tmp_path / "out"))
    assert error.value.code == "nothing-started"


def test_a_killed_holder_holds_nothing(holder, tmp_path) -> None:
    out = Location.of(tmp_path / "out")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (out / "ledger" / "driver.json").exists()
    assert driver_of(out) is None
    with only_driver(out, "teachonce cache"):
        assert driver_of(out).pid == os.getpid()
    assert not (out / "ledger" / "driver.json").exists()


def test_inside_it_may_be_entered_again(tmp_path) -> None:
    out = Location.of(tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path)
    with only_driver(out, "teachonce run"):
        with only_driver(Location.of(tmp_path / "link" / "out"), "teachonce cache"):
            assert driver_of(out).command == "teachonce run"
        assert driver_of(out) is not None, "the inner one does not let go"
    assert driver_of(out) is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff" * 10])
def test_whatever_a_lock_says(data) -> None:
    assert Driver.from_bytes(data).command == "another command"
    assert Driver.from_bytes(Driver.here("teachonce cache").to_bytes()).pid == os.getpid()


def test_other_things_in_the_folder_are_left_alone(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo.jpg").write_bytes(b"x")
    with only_driver(Location.of(tmp_path / "out"), "teachonce cache"):
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["photo.jpg"]


def test_an_empty_folder_that_was_there_stays(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    with only_driver(Location.of(tmp_path / "out"), "teachonce cache"):
        assert (tmp_path / "out" / "ledger" / "driver.json").exists()
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


def test_many_at_once_take_turns(tmp_path) -> None:
    """Each of 12 processes tries until it holds the lock, and then adds one to a number, slowly."""
    script = HOLD.replace(
        "with only_driver",
        "import pathlib\nfrom teachonce.storage_schemas.errors import BusyError\ndef turn():\n  with only_driver",
    ).replace(
        '    print("held", flush=True)\n    sys.stdin.read()\n',
        "    file = pathlib.Path(sys.argv[2]); n = int(file.read_text()); time.sleep(0.02); file.write_text(str(n + 1))\n"
        "while True:\n  try:\n    turn(); break\n  except BusyError:\n    time.sleep(0.01)\n",
    )
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", script, str(tmp_path / "out"), str(counter)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(12)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 12, errors
    assert counter.read_text() == "12"


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys) -> None:
    import errno
    import fcntl

    def no_locks(*_arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with only_driver(Location.of(tmp_path / "out"), "teachonce cache"):
        pass
    assert "this file system has no locks" in capsys.readouterr().err
