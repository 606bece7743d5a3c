"""Python programs as processes of their own without the seconds of import: a server that has imported the libraries forks them.

As a module: `WarmPython`, with the words of a command line behind `python`, and `Jobs`. As a script: the server. A program has its own
arguments, working folder, environment, streams, signals and exit code, and runs what is registered for its end. What tells it
apart from one that `subprocess` starts: what libraries read of the environment as they are imported (`OMP_NUM_THREADS`) is the
server's; all programs share one hash seed; nothing is taken apart after the functions registered by `atexit`. A test about
these, or about how a program starts, starts its own.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

#: Not `teachonce` itself but for what a command imports first: tests look at which of its modules a program brings along.
PRELOAD = (
    "open_clip",
    "timm",
    "torch",
    "torch.utils.tensorboard",
    "torchvision",
    "webdataset",
    "zarr",
    "PIL.Image",
    "pyarrow.parquet",
    "safetensors.torch",
    "msgspec",
    "click",
    "xarray",
)

_LARGEST_REQUEST = 1 << 20

#: Seconds. What takes longer on the slowest machine does not end at all, and is better a failure than a suite that hangs.
_LONGEST = 1800.0


class Process:
    """A program that runs: of `subprocess.Popen` what tests need. Its stdout and stderr are files, so it never waits for a reader.

    Attributes:
        pid: its process id.
        returncode: its exit code, or a negative signal; None until `poll` or `wait` has seen its end.
        stdout, stderr: what it has written so far.
    """

    def __init__(self, connection: socket.socket, pid: int, files: tuple[IO[bytes], IO[bytes]]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._connection, self._files = connection, files
        self._written = ("", "")

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        with contextlib.suppress(TimeoutError):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float = _LONGEST) -> int:
        """Its exit code.

        Raises:
            TimeoutError: it still runs.
        """
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                answer = self._connection.recv(64)
            except BlockingIOError as error:
                raise TimeoutError from error
            assert answer, "the server of programs is gone"
            self._written = (self.stdout, self.stderr)
            self.returncode = int(answer)
            self._close()
        return self.returncode

    def _close(self) -> None:
        for each in (self._connection, *self._files):
            each.close()

    # A test that failed waits no more for what it started. Left open, its files would be warned about in another test.
    __del__ = _close

    def communicate(self, timeout: float = _LONGEST) -> tuple[str, str]:
        """All of its stdout and stderr, once it has ended."""
        self.wait(timeout)
        return self.stdout, self.stderr

    @property
    def stdout(self) -> str:
        return self._text(0)

    @property
    def stderr(self) -> str:
        return self._text(1)

    def _text(self, which: int) -> str:
        if self.returncode is not None:
            return self._written[which]
        file = self._files[which].fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode()

    def send_signal(self, number: int, *, group: bool = False) -> None:
        """To the program, or to the whole group of one that started in a session of its own; nothing once it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended in between
                (os.killpg if group else os.kill)(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class WarmPython:
    """Programs of the server at this address."""

    def __init__(self, address: Path) -> None:
        self.address = str(address)

    def jobs(self, *words: object) -> Jobs:
        """A program that does one job after another."""
        return Jobs(self, *words)

    def run(self, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; see `start`."""
        process = self.start(*words, **options)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(words, process.wait(), stdout, stderr)  # type: ignore[arg-type]

    def start(
        self,
        *words: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        new_session: bool = False,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Process:
        """Start a program.

        Args:
            words: what stands behind `python` on its command line: `-W` options, then `-m MODULE`, `-c CODE` or a script, and its
                arguments.
            cwd, env: of the program; this process's own where they are None.
            new_session: as a terminal gives each command a process group of its own.
            stdin, stdout, stderr: file descriptors; None for nothing, and for files that the process's properties read.
        """
        with contextlib.ExitStack() as stack:
            null = stack.enter_context(Path(os.devnull).open("rb"))
            out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  # the process reads them
            files = [
                null.fileno() if stdin is None else stdin,
                out.fileno() if stdout is None else stdout,
                err.fileno() if stderr is None else stderr,
            ]
            connection = self._connect()
            request = {
                "words": [str(word) for word in words],
                "cwd": str(cwd or Path.cwd()),
                "session": new_session,
                "env": dict(os.environ if env is None else env),
            }
            data = json.dumps(request).encode()
            assert len(data) < _LARGEST_REQUEST
            connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
            connection.settimeout(None)
            return Process(connection, int(connection.recv(64)), (out, err))

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST_REQUEST)
        connection.connect(self.address)
        return connection


class Jobs:
    """A program that reads a JSON job a line from stdin, and answers each with a line of JSON on stdout."""

    def __init__(self, python: WarmPython, *words: object) -> None:
        (stdin, to), (back, stdout) = os.pipe(), os.pipe()
        self._process = python.start(*words, stdin=stdin, stdout=stdout, stderr=2)
        os.close(stdin)
        os.close(stdout)
        self._to, self._back = os.fdopen(to, "w", buffering=1), os.fdopen(back)

    def do(self, job: dict[str, Any]) -> Any:
        """What the program answers."""
        self._to.write(json.dumps(job) + "\n")
        return json.loads(self._back.readline())

    def close(self) -> None:
        """End the program."""
        self._to.close()
        self._process.wait()
        self._back.close()


def serve(listener: socket.socket) -> dict[str, Any]:
    """Fork a program for each connection. Comes back in the program, with what it was asked to be."""
    with listener, contextlib.ExitStack() as stack:
        ended, write_ended = (stack.enter_context(end) for end in socket.socketpair())
        write_ended.setblocking(False)
        signal.set_wakeup_fd(write_ended.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # What is sent to a program that is not there yet waits for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        running: dict[int, socket.socket] = {}
        with selectors.DefaultSelector() as selector:
            for source in (listener, ended):
                selector.register(source, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is ended:
                        ended.recv(4096)
                        for pid, code in _ended():
                            connection = running.pop(pid)
                            with contextlib.suppress(OSError):  # nobody waits any more
                                connection.send(str(code).encode())
                            connection.close()
                    if key.fileobj is listener:
                        connection, _ = listener.accept()
                        data, files, _, _ = socket.recv_fds(connection, _LARGEST_REQUEST, 3)
                        child = os.fork()
                        if child == 0:
                            for other in (*running.values(), connection):
                                other.close()
                            signal.set_wakeup_fd(-1)
                            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                            return {**json.loads(data), "files": files}
                        for file in files:
                            os.close(file)
                        running[child] = connection
                        connection.send(str(child).encode())


def _ended() -> Iterator[tuple[int, int]]:
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            yield found[0], os.waitstatus_to_exitcode(found[1])


def become(request: dict[str, Any]) -> None:
    """Be the program: as `python WORDS` in that folder and environment."""
    if request["session"]:
        os.setsid()
    for target, file in enumerate(request["files"]):
        os.dup2(file, target)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    tempfile.tempdir = None
    code, killed = 1, False
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        _run(request["words"])
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            code = int(end.code or 0)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        killed = isinstance(error, KeyboardInterrupt)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if killed:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def _run(words: list[str]) -> None:
    """What `python WORDS` does, but for its end."""
    import runpy
    import warnings

    filters = [word for word in os.environ.get("PYTHONWARNINGS", "").split(",") if word]
    while words[0] == "-W":
        filters.append(words[1])
        words = words[2:]
    if filters:
        sys.warnoptions[:] = filters
        warnings._processoptions(filters)  # type: ignore[attr-defined]
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    kind, rest = words[0], words[1:]
    if kind == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = ["-m", *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        module = type(sys)("__main__")
        sys.modules["__main__"] = module
        exec(compile(rest[0], "<string>", "exec"), module.__dict__)
    else:
        sys.path.insert(0, str(Path(kind).resolve().parent))
        sys.argv = [kind, *rest]
        module = type(sys)("__main__")
        module.__file__ = kind
        sys.modules["__main__"] = module
        exec(compile(Path(kind).read_bytes(), kind, "exec"), module.__dict__)


def preload() -> None:
    """Import what takes long, and nothing that starts a thread: those do not come along."""
    import gc
    import importlib

    # As the command itself would set it, before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for name in PRELOAD:
        importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()


def main() -> None:
    """Serve at the address that is the script's argument until SIGTERM, from at once: who comes early waits."""
    address = Path(sys.argv[1])
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{address}.new")
    listener.listen(64)
    Path(f"{address}.new").rename(address)
    print("listening", flush=True)
    del sys.path[0]  # the tests' folder
    preload()
    become(serve(listener))


if __name__ == "__main__":
    main()
