"""Ctrl-C at any moment: one line, exit code 130, no traceback of any process of the terminal, nothing half-written."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

LINE = "Interrupted. What was finished is kept; the same command resumes."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture
def start(python):
    """A command in a process group of its own, as a terminal gives each one."""
    return lambda *words: python.start("-m", "teachonce", *words, new_session=True)


def interrupted(process) -> list[str]:
    """Ctrl-C to the whole group; the lines that are told."""
    process.send_signal(signal.SIGINT, group=True)
    assert process.wait() == 130, process.stderr
    return process.stderr.splitlines()


def half_written(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.name.endswith((".tmp", ".partial"))]


@pytest.mark.parametrize("what", ["import click", "parse", "work", "end", "callback", "other error"])
def test_at_any_moment_of_the_program(what):
    """Moments that a clock would not hit: the signal comes from within."""
    program = f"""
import os, signal, sys
def ctrl_c(*_): os.kill(os.getpid(), signal.SIGINT)
what = {what!r}
if what == "import click":
    class Hit:
        def find_spec(self, name, path=None, target=None):
            if name == "click": ctrl_c()
    sys.meta_path.insert(0, Hit())
import teachonce.__main__ as program
def work(*_, **__):
    if what == "callback":
        class Dies:
            def __del__(self): ctrl_c()
        Dies()
    elif what == "other error":
        try: ctrl_c()
        except BaseException: raise RuntimeError("a library's own words for it")
    elif what == "work": ctrl_c()
    raise SystemExit(0)
if what != "import click":
    from teachonce import cli
    cli.main.commands["models"].callback = work
    if what == "parse":
        cli.main.commands["models"].params[0].callback = ctrl_c
    if what == "end":
        import atexit
        atexit.register(ctrl_c)
sys.argv = ["teachonce", "models"]
program.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines() in ([LINE], ["Interrupted."])


@pytest.mark.parametrize("ignored", [True, False])
def test_where_the_signal_is_ignored_it_stays_so(ignored):
    program = (
        "import os, signal\n"
        f"signal.signal(signal.SIGINT, signal.SIG_IGN if {ignored} else signal.default_int_handler)\n"
        "from teachonce.pipeline import interrupt\n"
        "interrupt.install()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == (
        0 if ignored else 130
    )


def test_a_unit_in_a_thread_ends_at_its_next_samples():
    """Not at its last: a shard of a large teacher takes hours on a CPU."""
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.types import Resources, Unit

    steps = threading.Semaphore(0)

    class Endless:
        name, resources = "endless", Resources(units_at_once=2)

        def open(self):
            def run(unit, timer):
                while True:
                    timer.advance(1)
                    steps.release()
                    time.sleep(0.001)

            return run

    class Board:
        def starting(self, what):
            pass

        def at(self, key, samples):
            pass

    def units():
        yield Unit(key="0")
        steps.acquire()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(SerialExecutor().map(Endless(), None, units(), Board()))  # type: ignore[arg-type]


#: Sends Ctrl-C at each line that the main thread goes through in `do`, turn by turn: of ours, and of the libraries that it calls there.
AT_EACH_LINE = """
import faulthandler, os, signal, sys
from teachonce.pipeline import interrupt
interrupt.install()

def hit(number):
    seen = 0
    def line(frame, event, _):
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == number:
                sys.settrace(None)
                os.kill(os.getpid(), signal.SIGINT)
        return line
    def call(frame, event, _):
        file = frame.f_code.co_filename
        if "/concurrent/" in file or file.endswith(("/threading.py", "/queue.py", "/executors/serial.py")) or "/decoding/" in file:
            return line
    sys.settrace(call)
    raised = False
    try:
        do()
    except KeyboardInterrupt:
        raised = True
    finally:
        sys.settrace(None)
    assert raised == (seen >= number), number  # neither lost nor kept for later
    return raised

number = 1
while True:
    faulthandler.dump_traceback_later(60, exit=True)  # a wait without end
    with interrupt.work():
        if not hit(number):
            break
    interrupt._happened = False  # the next one is the first again
    number += 1
print(number)
"""

UNITS = """
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.types import Resources, Seen, Unit

class Quick:
    name, resources = "quick", Resources(units_at_once=2)
    def open(self):
        def run(unit, timer):
            timer.advance(1)
            return Seen(key=unit.key, rows=1, content=None)
        return run

class Board:
    def starting(self, what): pass
    def at(self, key, samples): pass

def do():
    list(SerialExecutor().map(Quick(), None, [Unit(key=str(i)) for i in range(4)], Board()))
"""

IMAGES = """
import contextlib
import numpy as np
from teachonce.stages.decoding.threads import Threads
from teachonce.stages.decoding.work import in_order

class Quick:
    def layout(self, task): return [(np.dtype("u1"), (4,))]
    def make(self, task, arrays): arrays[0][:] = task
    def close(self): pass

def do():
    pool = Threads(2)
    with contextlib.closing(pool), contextlib.closing(pool.open(Quick())) as opened:
        for task, made in in_order(opened, range(6), 3):
            assert made.arrays[0].tolist() == [task] * 4
"""


@pytest.mark.parametrize("do", [UNITS, IMAGES], ids=["units in threads", "images in threads"])
def test_wherever_it_meets_a_wait_for_threads_it_ends(do):
    done = subprocess.run([sys.executable, "-c", do + AT_EACH_LINE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


@pytest.mark.slow
@pytest.mark.ray
def test_while_ray_works(corpus, start, tmp_path):
    out = tmp_path / "shards"
    command = ["shard", corpus, "--shard-size", 5, "--out", out, "--workers", 2]
    process = start(*command)
    while not list((out / "ledger" / "shard" / "receipts").glob("*.json")):
        assert process.poll() is None, process.stderr
        time.sleep(0.01)
    lines = interrupted(process)
    assert lines[-1] == LINE
    assert [line for line in lines if not re.match(r"[a-z]+: (\d|starting|loading)", line)] == [LINE]
    # Workers are killed, as by `kill -9`: what they had begun has a temporary name, which the same command removes.
    again = start(*command[:-2], "--executor", "serial")
    assert again.wait() == 0, again.stderr
    assert half_written(out) == []


@pytest.mark.slow
def test_while_processes_that_decode_start(corpus, start, tmp_path):
    """The first one imports for a second, and forks the others when the parent may be gone."""
    shards, store, out = tmp_path / "shards", tmp_path / "store", tmp_path / "student"
    teacher = ["--teacher", "timm:test_vit", "--teacher-pretrained", "random", "--threads", 1, "--out", store]
    for words in (
        ["shard", corpus, "--executor", "serial", "--out", shards],
        ["vectors", *teacher],
        ["cache", shards, *teacher, "--executor", "serial"],
    ):
        process = start(*words)
        assert process.wait() == 0, process.stderr
    command = [
        "distill",
        shards,
        store,
        "--student",
        "timm:test_vit",
        "--recipe",
        "kd",
        "--epochs",
        200,
        "--batch-size",
        8,
        "--decode-workers",
        2,
        "--out",
        out,
    ]
    for seconds in (0.05, 1.0):
        process = start(*command)
        while not _has_first(process.pid):
            assert process.poll() is None, process.stderr
            time.sleep(0.01)
        time.sleep(seconds)
        lines = interrupted(process)
        assert [line for line in lines if not line.startswith("distill")] == [LINE]
        assert half_written(out) == []


def _has_first(parent: int) -> bool:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"stages.decoding.worker" in (folder / "cmdline").read_bytes():
                above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if above == parent:
                    return True
        except OSError:
            continue
    return False
