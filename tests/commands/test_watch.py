"""`status --watch`: lines where it is piped, a screen on a terminal, until all is done; Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.commands import watch as watching
from teachonce.pipeline.ledger import Ledger, Plan
from teachonce.pipeline.storage import Location
from teachonce.storage_schemas.fingerprint import Fingerprint
from teachonce.storage_schemas.receipt import Receipt

FINGERPRINT = Fingerprint(fields={"a": 1})


def stage(**changes) -> dict:
    facts = {"stage": "cache", "folder": "t.zarr", "units": 3, "done": 0, "rows": 30, "rows_done": 0, "failed": 0}
    return {**facts, "training": None, **changes}


@pytest.fixture
def looks(monkeypatch):
    """Looks that come one after the other, at once."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def run(*states: tuple[str, dict]) -> None:
        facts = iter({"path": "t.zarr", "state": state, "running": {}, "stages": [one]} for state, one in states)
        watching.watch(lambda: next(facts), lambda found: f"report, {found['state']}", 1.0)
        assert next(facts, "none is left") == "none is left"

    return run


def test_elsewhere_a_line_is_added_where_something_changed(looks, capsys):
    looks(
        ("units left", stage()),
        ("units left", stage()),
        ("units left", stage(done=1, rows_done=10, failed=1)),
        ("complete", stage(done=3, rows_done=30)),
    )
    lines = [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "cache: 0 of 3 units, 0 of 30 images",
        "cache: 1 of 3 units, 10 of 30 images, 1 failed",
        "cache: 3 of 3 units, 30 of 30 images",
    ]


def test_a_terminal_is_redrawn_and_keeps_the_last_report(looks, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", screen)
    looks(("units left", stage()), ("complete", stage(done=3)))
    first, last = screen.getvalue().split("\x1b[H")[1:]
    assert re.fullmatch(
        r"\S+, until all is done; Ctrl-C ends it\x1b\[K\n\x1b\[K\nreport, units left\x1b\[K\n\x1b\[J", first
    )
    assert last == "\x1b[Jreport, complete\n"


def test_a_screen_has_no_more_lines_than_the_terminal_has_rows(monkeypatch, capsys):
    monkeypatch.setattr(watching, "screen_size", lambda: (80, 5))
    watching._redraw("\n".join(map(str, range(10))))
    shown = capsys.readouterr().out.replace("\x1b[K", "").removeprefix("\x1b[H").splitlines()
    assert shown[2:4] == ["0", "… and 9 more lines"]


@pytest.fixture
def begun(tmp_path):
    """A folder of shards with one unit of two done."""
    out = Location.of(tmp_path / "out")
    ledger = Ledger(out, "shard")
    ledger.begin(Plan(stage="shard", fingerprint=FINGERPRINT, units=2, rows=2), hint="")
    commit(ledger, "000000")
    return ledger


def commit(ledger: Ledger, key: str) -> None:
    receipt = Receipt(key=key, outputs=(), rows=1, invalid_rows=(), digest="d", fingerprint=FINGERPRINT.digest)
    ledger.commit(receipt, {})


@pytest.mark.parametrize(
    "words", [["--watch", "PATH"], ["PATH", "--watch"], ["--watch", "0.5", "PATH"], ["PATH", "--watch=3"]]
)
def test_seconds_may_be_left_out_wherever_the_option_stands(words, begun):
    commit(begun, "000001")
    done = CliRunner().invoke(main, ["status", *(str(begun.out) if word == "PATH" else word for word in words)])
    assert (done.exit_code, done.stdout.partition(" ")[2]) == (0, "shard: 2 of 2 units, 2 of 2 images\n")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--watch", "--json"], 1, "options-exclude-each-other"),
        (["--watch", "0"], 2, "--watch"),
        (["--watch=x"], 2, "--watch"),
    ],
)
def test_what_cannot_be_is_refused(words, code, told, begun):
    done = CliRunner().invoke(main, ["status", str(begun.out), *words])
    assert (done.exit_code, told in done.stderr) == (code, True)


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_ends_it_in_one_line(begun):
    terminal, inside = pty.openpty()
    words = [sys.executable, "-m", "teachonce", "status", str(begun.out), "--watch", "0.1"]
    process = subprocess.Popen(words, stdin=inside, stdout=inside, stderr=inside, start_new_session=True)
    os.close(inside)
    shown = b""
    while shown.count(b"1 of 2 units done") < 2:
        shown += os.read(terminal, 1 << 16)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # its end of the terminal is closed
        while True:
            shown += os.read(terminal, 1 << 16)
    assert process.wait() == 130
    assert b"Traceback" not in shown
    assert shown.rstrip().endswith(b"Interrupted.")
    os.close(terminal)
