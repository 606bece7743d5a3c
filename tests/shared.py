"""What all tests of a run share, however many processes run them: processes that start when the first test needs them.

The process that the run began with owns a folder, and says where to those that it starts (`HERE`). What is started there has a
pipe as its stdin that the owner holds open, so that it ends with the owner, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

#: The environment's name for the folder.
HERE = "TEACHONCE_TESTS_SHARE"

#: Runs "$@" until stdin ends, and leaves it a moment to end.
_UNTIL_STDIN_ENDS = 'exec 3<&0; "$@" </dev/null & cat <&3 >/dev/null; kill $!; wait'

#: Seconds for a start. What takes longer on the slowest machine does not start at all.
_LONGEST = 900


class Owner:
    """The folder, in the process that the run began with. Its path is short: sockets lie there."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tests-"))
        os.mkfifo(self.folder / "open")
        self._open = os.open(self.folder / "open", os.O_RDWR)
        os.environ[HERE] = str(self.folder)

    def close(self) -> None:
        """End what has started."""
        os.close(self._open)
        for lock in self.folder.glob("*.lock"):
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # held until it has ended
        shutil.rmtree(self.folder, ignore_errors=True)
        del os.environ[HERE]


def share(name: str, command: Sequence[str | Path], *, ready: str = "") -> Path:
    """The folder of a process that all tests of this run share, which is started if it does not run yet.

    Args:
        name: of its folder, which is its argument where the command says `FOLDER`. What it prints is there, in `printed`.
        command: what runs until it is ended by SIGTERM.
        ready: what it prints when it can be used.
    """
    folder = Path(os.environ[HERE]) / name
    folder.mkdir(exist_ok=True)
    words = [str(word).replace("FOLDER", str(folder)) for word in command]
    with (folder.parent / f"{name}.starting").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        printed = folder / "printed"
        if not printed.exists():
            with (folder.parent / f"{name}.lock").open("a") as lock, printed.open("w") as output:
                fcntl.flock(lock, fcntl.LOCK_SH)
                os.set_inheritable(lock.fileno(), True)
                # Twice a child: nobody has to wait for it.
                subprocess.run(
                    ["sh", "-c", f"({_UNTIL_STDIN_ENDS}) <{folder.parent}/open &", "sh", *words],
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    check=True,
                    pass_fds=[lock.fileno()],
                )
        failed = folder / "failed"
        began = time.monotonic()
        while ready not in printed.read_text():
            if failed.exists() or time.monotonic() - began > _LONGEST:
                failed.touch()  # the other tests need not wait for it as long
                raise TimeoutError(f"{name} did not start: {printed.read_text()}")
            time.sleep(0.02)
    return folder
