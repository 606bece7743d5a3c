"""Work ahead in processes: in order, in memory that is never written twice while somebody looks at it, and nothing is left over."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teachonce.stages.decoding.processes import Processes
from teachonce.stages.decoding.threads import Threads
from teachonce.stages.decoding.work import in_order
from teachonce.storage_schemas.errors import InputError, StorageError, TeachonceError

HERE = Path(__file__).parent


def numbers(pool, works, tasks):
    opened = pool.open(works.Numbers())
    yield from in_order(opened, tasks, pool.ahead)
    opened.close()


def expected(number: int, count: int) -> list[np.ndarray]:
    values = number + np.arange(count)
    return [values, np.stack([values**2, values**2]).astype(np.float32)]


def pids_of(pool, works) -> set[int]:
    """The processes of a pool: each gets a task while the others have theirs."""
    opened = pool.open(works.Numbers())
    found: set[int] = set()
    while len(found) < 2:
        found |= {future.result().info for future in [opened.submit((0, 1)) for _ in range(8)]}
    opened.close()
    return found


def is_running(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_results_are_those_of_threads_and_of_this_thread_in_order(processes, works):
    tasks = [(10 * number, number % 7) for number in range(40)]
    found = {}
    for name, pool in (("processes", processes), ("threads", Threads(3)), ("none", Threads(0))):
        found[name] = [
            (task, [array.tobytes() for array in made.arrays], [array.shape for array in made.arrays])
            for task, made in numbers(pool, works, tasks)
        ]
        if pool is not processes:
            pool.close()
    assert [task for task, _, _ in found["none"]] == tasks
    assert found["processes"] == found["threads"] == found["none"]
    for task, arrays, _ in found["none"]:
        assert arrays == [array.tobytes() for array in expected(*task)]


def test_the_processes_are_others_and_stay(processes, works):
    pids = pids_of(processes, works)
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert pids_of(processes, works) == pids


def test_several_works_at_once(processes, works):
    ones = numbers(processes, works, [(number, 3) for number in range(20)])
    large = processes.open(works.Large())
    others = in_order(large, [bytes([number]) * 5 for number in range(20)], processes.ahead)
    for number, ((_, one), (_, other)) in enumerate(zip(ones, others, strict=True)):
        assert one.arrays[0].tolist() == [number, number + 1, number + 2]
        assert other.info == bytes([number]) * 5
    large.close()


def test_one_task_after_another_where_nothing_is_ahead(processes, works):
    opened = processes.open(works.Numbers())
    assert [made.arrays[0][0] for _, made in in_order(opened, [(n, 1) for n in range(5)], 0)] == [0, 1, 2, 3, 4]
    opened.close()


def test_no_more_tasks_are_taken_than_may_be_ahead(processes, works):
    taken = []

    def tasks() -> Iterator[tuple[int, int]]:
        for number in range(30):
            taken.append(number)
            yield number, 1

    opened = processes.open(works.Numbers())
    for number, (task, _) in enumerate(in_order(opened, tasks(), 3)):
        assert task == (number, 1)
        assert len(taken) <= number + 4
    opened.close()


# Memory.


def test_arrays_that_are_kept_are_never_written_again(processes, works):
    """Whole, as views of views, as tensors, as memory."""
    kept: list[tuple[int, object]] = []
    for turn in range(3):
        for (number, _), made in numbers(processes, works, [(100 * turn + n, 50) for n in range(30)]):
            values, squares = made.arrays
            kept.append(
                (number, [values, values[1:][:3], torch.from_numpy(values)[2:4], memoryview(values)][number % 4])
            )
            if number % 5 == 0:
                kept.append((number, squares[0].view(np.uint8).reshape(50, 4)[3]))
            del made, values, squares
            gc.collect(0)
    for number, what in kept:
        found = np.asarray(what)
        if found.dtype == np.uint8:
            assert found.tobytes() == np.float32((number + 3) ** 2).tobytes()
        else:
            first = {0: 0, 1: 1, 2: 2, 3: 0}[number % 4]
            assert found.tolist() == [number + first + i for i in range(len(found))]


def test_memory_is_used_again_grows_with_the_tasks_and_is_given_up(processes, works):
    opened = processes.open(works.Numbers())
    most = processes.ahead + 3  # as many as are ahead, the one in hand, one on its way

    def run(count: int, tasks: int, keep: bool = False) -> list[np.ndarray]:
        return [
            array
            for _, made in in_order(opened, [(n, count) for n in range(tasks)], processes.ahead)
            for array in (made.arrays if keep else ())
        ]

    run(100, 200)
    assert len(opened.slabs.alive) <= most
    first = set(opened.slabs.alive)
    run(50, 50)
    assert opened.slabs.alive == first  # smaller tasks find room in them
    run(100_000, 50)
    assert len(opened.slabs.alive) <= most
    assert not opened.slabs.alive & first
    kept = run(100_000, 40, keep=True)
    assert len(opened.slabs.alive) >= 40
    del kept
    assert len(opened.slabs.alive) <= most + 8
    opened.close()


def mapped(pids: set[int]) -> int:
    """Shared memory that processes have mapped, in bytes."""
    total = 0
    for pid in pids:
        for line in (Path("/proc") / str(pid) / "maps").read_text().splitlines():
            if "memfd:teachonce" in line:
                begin, end = line.split()[0].split("-")
                total += int(end, 16) - int(begin, 16)
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_let_memory_go_with_the_caller(processes, works, until):
    pids = pids_of(processes, works)
    opened = processes.open(works.Numbers())
    kept = [made for _, made in in_order(opened, [(n, 100_000) for n in range(40)], processes.ahead)]
    assert mapped(pids) > 40 * 1_600_000
    del kept
    for _ in range(3):  # each hears of it with its next task
        [future.result() for future in [opened.submit((0, 1)) for _ in range(8)]]
    assert mapped(pids) <= 2 * (2 * 2 + 8) * 1_700_000
    opened.close()
    until(lambda: mapped(pids) == 0, "memory of a work that is over")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_open_files_are_few_however_many_results_are_kept(processes, works):
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [made.arrays for _, made in numbers(processes, works, [(n, 10) for n in range(400)])]
    assert len(list(Path("/proc/self/fd").iterdir())) - before < 200
    for number, (values, squares) in enumerate(kept):
        assert values.tolist() == expected(number, 10)[0].tolist()
        assert squares.tolist() == expected(number, 10)[1].tolist()
    del kept, values, squares
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


# Errors.


def test_errors_are_raised_where_the_result_is_taken(processes, works):
    opened = processes.open(works.Failing())
    with pytest.raises(InputError) as ours:
        opened.submit("ours").result()
    assert str(ours.value) == "it is empty: here: found 3. Next: give more"
    assert ours.value.code == "setting-empty"
    with pytest.raises(ValueError, match="wrong value") as any_:
        opened.submit("any").result()
    (note,) = any_.value.__notes__
    assert note.startswith("in a process that decodes:\nTraceback")
    assert 'raise ValueError("wrong value")' in note
    with pytest.raises(RuntimeError, match="TwoArguments: this and that") as unreadable:
        opened.submit("unreadable").result()
    assert 'raise TwoArguments("this", "that")' in unreadable.value.__notes__[0]
    with pytest.raises(RuntimeError, match="InputError: it is open"):
        opened.submit("ours, with what cannot be sent").result()
    with pytest.raises(Exception, match="pickle"):
        opened.submit("a result that cannot be sent").result()
    with pytest.raises(OSError, match="no layout"):
        opened.submit("layout").result()
    with pytest.raises(Exception, match="pickle"):
        opened.submit(lambda: None).result()
    assert opened.submit("whole").result().info == "done"
    opened.close()  # it cannot be closed, which is nobody's trouble


def test_a_work_that_cannot_be_read_there_is_an_error_of_its_tasks(processes, works):
    opened = processes.open(works.Unreadable())
    for _ in range(3):
        with pytest.raises(RuntimeError, match="ImportError: no such package there"):
            opened.submit((0, 1)).result()
    opened.close()
    assert len(list(numbers(processes, works, [(0, 1)] * 9))) == 9


def test_too_little_memory_is_an_error_of_the_task(processes, works):
    opened = processes.open(works.Numbers())
    with pytest.raises(StorageError) as error:
        opened.submit((0, 1 << 55)).result()
    assert error.value.code == "shared-memory-full"
    assert opened.submit((0, 1)).result().arrays[0].tolist() == [0]
    opened.close()


@pytest.mark.parametrize(("what", "how"), [("killed", "was killed by SIGKILL"), ("exit", "ended with exit code 3")])
def test_a_process_that_ends_fails_all_that_is_not_done(works, what, how):
    pool = Processes(2, ["decoding_works"])
    opened = pool.open(works.Failing())
    assert opened.submit("whole").result().info == "done"
    futures = [opened.submit(task) for task in (what, "whole", what, what, "whole", "whole", "whole", "whole")]
    with pytest.raises(TeachonceError) as error:
        futures[0].result()
    assert error.value.code == "loader-died"
    assert str(error.value.found).endswith(how)
    assert "use fewer --decode-workers" in error.value.hint
    for future in (*futures[2:4], opened.submit("whole")):
        with pytest.raises(TeachonceError) as later:
            future.result()
        assert later.value is error.value
    opened.close()
    pool.close()


def test_a_module_that_cannot_be_imported_is_an_error(works, capfd):
    pool = Processes(1, ["no_such_module"])
    with pytest.raises(TeachonceError, match="the process that starts them ended with exit code 1") as error:
        pool.open(works.Numbers()).submit((0, 1)).result()
    assert error.value.code == "loader-died"
    pool.close()
    assert "No module named 'no_such_module'" in capfd.readouterr().err


# Messages that fit into no socket.


def test_tasks_and_results_larger_than_a_sockets_buffer(processes, works):
    opened = processes.open(works.Large(padding=bytes(3 << 20)))
    tasks = [bytes([number]) + bytes(1 << 20) for number in range(24)]
    for task, made in in_order(opened, tasks, 8):
        assert made.info == task[::-1]
    opened.close()


# Ends.


def test_files_of_a_work_are_closed_with_it(processes, works, tmp_path, until):
    opened = processes.open(works.Files(tmp_path))
    names = [f"{n}" for n in range(12)]
    assert [made.info for _, made in in_order(opened, names, processes.ahead)] == [None] * 12
    opened.close()
    until(lambda: "closed" in {(tmp_path / name).read_text() for name in names}, "a work is closed")
    threads = Threads(1)
    opened = threads.open(works.Files(tmp_path))
    opened.submit("thread").result()
    opened.close()
    threads.close()
    assert (tmp_path / "thread").read_text() == "closed"


def test_what_is_left_when_the_caller_stops_is_given_up(processes, works, tmp_path):
    opened = processes.open(works.Waiting(tmp_path))
    (tmp_path / "0").touch()
    made = in_order(opened, [(number, 1) for number in range(100)], 20)
    assert next(made)[0] == (0, 1)
    made.close()
    opened.close()
    for number in range(1, 6):  # those that have begun go on
        (tmp_path / str(number)).touch()
    assert len(list(numbers(processes, works, [(number, 1) for number in range(10)]))) == 10


def test_a_work_is_closed_in_threads_when_none_is_at_it(works, tmp_path, until):
    begun, done = set(), []
    waiting: Any = works.Waiting

    class Noted(waiting):
        def make(self, task, arrays):
            begun.add(task[0])
            super().make(task, arrays)
            done.append(task[0])

        def close(self):
            done.append("closed")

    pool = Threads(2)
    opened = pool.open(Noted(tmp_path))
    (tmp_path / "0").touch()
    made = in_order(opened, [(number, 1) for number in range(100)], 20)
    assert next(made)[0] == (0, 1)
    until(lambda: begun == {0, 1, 2}, "both threads have begun")
    made.close()
    threading.Timer(0.1, lambda: [(tmp_path / str(number)).touch() for number in (1, 2)]).start()
    opened.close()
    assert sorted(done[:-1]) == [0, 1, 2]
    assert done[-1] == "closed"
    pool.close()


def test_a_pool_can_be_closed_at_any_moment(works, tmp_path):
    """While it starts, while tasks are at hand and wait, twice, and when it is broken."""
    Processes(1, ["decoding_works"]).close()
    pool = Processes(2, ["decoding_works"])
    opened = pool.open(works.Waiting(tmp_path))
    futures = [opened.submit((number, 1)) for number in range(10)]
    (tmp_path / "0").touch()
    futures[0].result()
    pool.close()
    for future in (*futures[1:], opened.submit((0, 1))):
        with pytest.raises(CancelledError):
            future.result()
    opened.close()
    pool.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_is_left_over(works):
    """Neither files that are open, nor threads, nor processes, however often works and pools are opened."""

    def use(pool: Processes) -> set[int]:
        for _ in range(20):
            assert len(list(numbers(pool, works, [(number, 1000) for number in range(8)]))) == 8
        return pids_of(pool, works)

    before = counts()
    for _ in range(2):
        pool = Processes(2, ["decoding_works"])
        pids = use(pool)
        opened = counts()
        assert use(pool) == pids
        assert counts()[1] == opened[1]
        assert counts()[0] < opened[0] + 20  # memory of the last works, perhaps; 20 works have come and gone
        pool.close()
        assert not any(is_running(pid) for pid in pids)
        for _ in range(3000):  # a thread that was joined is a task of the kernel's for a moment more
            left = counts()
            if all(now <= then for now, then in zip(left, before, strict=True)):
                break
            time.sleep(0.01)
        else:
            pytest.fail(f"files and threads: {left}, {before} before")


def counts() -> tuple[int, int]:
    """Files that are open, and threads."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))


SCRIPT = """
import sys, time
sys.path.insert(0, {here!r})
import decoding_works
from teachonce.stages.decoding.processes import Processes
pool = Processes(2, ["decoding_works"])
opened = pool.open(decoding_works.Numbers())
pids = set()
while len(pids) < 2:
    pids |= {{future.result().info for future in [opened.submit((0, 1)) for _ in range(8)]}}
print(*pids, flush=True)
{rest}
"""


def start(rest: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-X", "dev", "-c", SCRIPT.format(here=str(HERE), rest=rest)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def pids_printed(process: subprocess.Popen) -> list[int]:
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    return pids


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_program_leaves_no_process(until, busy):
    """Nor do processes live on that have something to do."""
    work = "futures = [opened.submit((0, 40_000_000)) for _ in range(8)]; print('busy', flush=True)" if busy else ""
    program = start(f"{work}\ntime.sleep(600)")
    pids = pids_printed(program)
    if busy:
        assert program.stdout is not None
        assert program.stdout.readline() == "busy\n"
    program.kill()
    program.communicate()
    until(lambda: not any(is_running(pid) for pid in pids), "processes outlive their program")


def test_a_program_that_closes_nothing_ends_quietly(until):
    program = start("")
    pids = pids_printed(program)
    assert program.communicate()[1] == ""
    assert program.returncode == 0
    until(lambda: not any(is_running(pid) for pid in pids), "processes outlive their program")


def test_a_forked_process_does_not_keep_a_pool_open():
    """It has a copy of every socket."""
    rest = "import os\nif os.fork() == 0:\n    time.sleep(600)\npool.close()\nprint('closed', flush=True)"
    program = start(rest, start_new_session=True)
    pids = pids_printed(program)
    assert program.stdout is not None
    assert program.stdout.readline() == "closed\n"
    assert not any(is_running(pid) for pid in pids)
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate()


def test_ctrl_c_is_the_programs_alone(until):
    """It reaches every process of a terminal; the program may close its pool in peace, and nobody prints anything else."""
    rest = """
try:
    print("ready", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print(opened.submit((7, 1)).result().arrays[0])
    pool.close()
"""
    program = start(rest, start_new_session=True)
    pids = pids_printed(program)
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    os.killpg(program.pid, signal.SIGINT)
    assert program.communicate() == ("[7]\n", "")
    assert program.returncode == 0
    assert not any(is_running(pid) for pid in pids)
