"""Acts at the n-th thing that processes do in a folder: signals to all of a command's processes, or to one. Python imports it at its start.

The environment's FAULTS_CONTROL names a folder. In it `order.json` says what to do: `folder`, whose files count; `at`, which of these
events (0: none); `delay`, seconds behind it; `signal`; `whom`: "group", "first" (the command itself) or "self" (whoever does it). Each
event adds a byte to the file `count`. `first` has the process id of the command. Where there is no `order.json`, nothing happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time

#: Events of Python's audit hooks, and which of their arguments are paths.
_EVENTS = {
    "open": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.remove": 1,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.truncate": 1,
    "shutil.rmtree": 1,
}

_busy = threading.local()


def watch(control: str) -> None:
    """Install the hook in this process."""
    with contextlib.suppress(FileExistsError), open(f"{control}/first", "x") as file:  # noqa: PTH123
        file.write(str(os.getpid()))

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event not in _EVENTS or getattr(_busy, "now", False):
            return
        _busy.now = True
        try:
            with contextlib.suppress(FileNotFoundError, ValueError):
                _count(control, arguments[: _EVENTS[event]])
        finally:
            _busy.now = False

    sys.addaudithook(look)


def _count(control: str, paths: tuple[object, ...]) -> None:
    with open(f"{control}/order.json") as file:  # noqa: PTH123
        order = json.load(file)
    names = [os.fsdecode(path) for path in paths if isinstance(path, (str, bytes, os.PathLike))]
    if not any(os.path.abspath(name).startswith(f"{order['folder']}/") for name in names):  # noqa: PTH100
        return
    counter = os.open(f"{control}/count", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(counter, b".")
        number = os.fstat(counter).st_size
    finally:
        os.close(counter)
    if number == order["at"]:
        if order["delay"]:
            threading.Thread(target=_act, args=(control, order), daemon=True).start()
        else:
            _act(control, order)


def _act(control: str, order: dict[str, object]) -> None:
    if order["delay"]:  # libfaketime refuses to sleep for no time
        time.sleep(float(str(order["delay"])))
    with open(f"{control}/first") as file:  # noqa: PTH123
        first = int(file.read())
    number = int(str(order["signal"]))
    with open(f"{control}/acted", "w"), contextlib.suppress(ProcessLookupError):  # noqa: PTH123
        if order["whom"] == "group":
            os.killpg(first, number)
        else:
            os.kill(os.getpid() if order["whom"] == "self" else first, number)


if "FAULTS_CONTROL" in os.environ:
    watch(os.environ["FAULTS_CONTROL"])
