"""Runs `distill` in forked processes that kill themselves at a chosen moment. See test_distill_resume.py.

One JSON job a line on stdin: the arguments of `plan_distill`, and {"kill": [what, n]}: SIGKILL at the n-th
    `fsync`
(before it: a temporary file is there), the n-th `rename` (before it) or after the n-th `step`; `SIGTERM` or `SIGUSR1` as the
    n-th step begins; or null. One
line on
stdout for each: how the process ended, as `os.waitstatus_to_exitcode` says. With {"students": {name: {…}}} several are
trained on one pass, each with these arguments changed, in OUT/name.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any


def dying(
    function: Callable[..., Any],
    n: int,
    *,
    before: bool,
    counter: Iterator[int] | None = None,
    by: signal.Signals = signal.SIGKILL,
) -> Callable[..., Any]:
    counter = counter or itertools.count(1)

    def called(*args: Any, **kwargs: Any) -> Any:
        call = next(counter)
        if call == n and before:
            os.kill(os.getpid(), by)
        result = function(*args, **kwargs)
        if call == n and not before:
            os.kill(os.getpid(), by)
        return result

    return called


def run(job: dict[str, Any]) -> None:
    from teachonce.pipeline import stopping
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.pipeline.storage import Location
    from teachonce.pipeline.together import run_together
    from teachonce.stages.many_students import check_common, distill_together
    from teachonce.stages.training.trainer import Trainer

    what, n = job.pop("kill") or ("nothing", 0)
    if what == "fsync":
        os.fsync = dying(os.fsync, n, before=True)
    elif what == "rename":
        names = itertools.count(1)  # a file that must be the first gets its name by a link
        pathlib.Path.replace = dying(pathlib.Path.replace, n, before=True, counter=names)
        os.link = dying(os.link, n, before=True, counter=names)
    elif what == "step":
        Trainer.step = dying(Trainer.step, n, before=False)
    elif what in ("SIGTERM", "SIGUSR1"):
        stopping.arm(600)
        Trainer.step = dying(Trainer.step, n, before=True, by=signal.Signals[what])
    students = job.pop("students", None)
    if students is None:
        stage = plan(job)
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
        return
    out = Location.of(job["out"])
    stages = {name: plan({**job, **changes, "out": str(out / name)}) for name, changes in students.items()}
    check_common(stages)
    done = run_together(stages, out, distill_together)
    if done.failure is not None:
        raise done.failure


def plan(job: dict[str, Any]) -> Any:
    from teachonce.stages.distill import plan_distill
    from teachonce.stages.models.compute import Compute
    from teachonce.stages.models.student_config import StudentConfig
    from teachonce.stages.settings.distill import DistillSettings

    job = dict(job)
    workers = job.pop("decode_workers", 0)
    compute = Compute(device="cpu", precision=job.pop("precision"), threads=1, decode_workers=workers)
    config = StudentConfig(model=job.pop("student"))
    own = {name: job.pop(name) for name in DistillSettings.__dataclass_fields__ if name in job}
    return plan_distill(
        job.pop("shards"),
        job.pop("store"),
        config,
        compute=compute,
        show_progress=False,
        settings=DistillSettings(**own),
        **job,
    )


def watch(command: list[str], report: str) -> None:
    """Run the program; report the modules of teachers and the files of weights that it loaded."""
    opened: set[str] = set()
    sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
    from teachonce.cli import main

    main(command, standalone_mode=False)
    endings = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".npy")
    found = {
        "teachers": [name for name in sys.modules if "teachers" in name],
        "weights": sorted(path for path in opened if path.endswith(endings)),
    }
    pathlib.Path(report).write_text(json.dumps(found))


def main() -> None:
    # Imported once, so that each run starts at once.
    import open_clip  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    for line in sys.stdin:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                job = json.loads(line)
                watch(**job) if "report" in job else run(job)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(75 if type(error).__name__ == "Stopped" else 1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
