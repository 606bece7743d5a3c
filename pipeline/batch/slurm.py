"""Owns what is written for Slurm: one script a job, and one that submits them."""

from __future__ import annotations

import shlex

from .job import SUBMIT, Job, Run, with_option
from .settings import SlurmSettings

#: Runs `command`, hands signals on to it, and goes back to the queue where Slurm's warning has stopped it. docker/slurm has the same lines.
RUN_COMMAND = r"""
# Both signals are handed on. After a warning the job goes back to the queue; scancel means what it says.
trap 'again=yes; kill -USR1 "$task" 2>/dev/null' USR1
trap 'kill -TERM "$task" 2>/dev/null' TERM
"${command[@]}" &
task=$!
while wait "$task"; code=$?; kill -0 "$task" 2>/dev/null; do :; done # a signal ends `wait` early
case "$again$code" in
    yes75 | yes138) # stopped by the warning: told to resume, or killed by it where teachonce was still starting
        # The id of an array's last task is that of the whole array, so a task is named by its number; Slurm ends this script.
        scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}" && sleep 60 ;;
esac
exit "$code"
"""


def slurm_files(run: Run, settings: SlurmSettings) -> dict[str, str]:
    """The scripts, by their names."""
    files = {f"{job.name}.sh": _script(run, job, settings) for job in run.jobs}
    return {**files, SUBMIT: _submit(run, files)}


def _script(run: Run, job: Job, settings: SlurmSettings) -> str:
    options = [f"--job-name={run.name}-{job.name}"]
    if job.slices is None:
        options.append("--output=%x-%j.log --open-mode=append")
    else:
        options.append(f"--array=0-{job.slices - 1}")
        options.append("--output=%x-%A_%a.log --open-mode=append")
    options.append(f"--ntasks=1 --cpus-per-task={settings.cpus} --mem={settings.memory}G --time={settings.time}")
    if settings.partition is not None:
        options.append(f"--partition={settings.partition}")
    if job.on_gpu and settings.gpus:
        options.append(f"--gres=gpu:{settings.gpus}")
    options.append("--requeue")
    if job.warning_seconds is not None:
        options.append(f"--signal=B:USR1@{job.warning_seconds}")
    command = shlex.join(("teachonce", *job.argv))
    if job.slices is not None:
        first, *rest = with_option(job.argv, "--slice")
        command = f'teachonce {first} {rest[0]} "$SLURM_ARRAY_TASK_ID/{job.slices}" {shlex.join(rest[1:])}'
    lines = [
        "#!/bin/bash",
        f"# {run.name}, {job.name}. Written by `teachonce submit slurm`; {SUBMIT} submits it.",
        *(f"#SBATCH {option}" for option in options),
        "",
        f"cd {shlex.quote(run.folder)} || exit 1",
        f"command=({command})",
    ]
    return "\n".join(lines) + "\n" + RUN_COMMAND


def _submit(run: Run, scripts: dict[str, str]) -> str:
    lines = [
        "#!/bin/bash",
        f"# Submits the jobs of {run.name}, each to begin when the one before has ended well. Logs are written beside this file.",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
    ]
    after = ""
    for script in scripts:
        lines.append(f"job=$(sbatch --parsable {after}{script})")
        lines.append(f'echo "{script} ${{job%%;*}}"')
        after = '--dependency="afterok:${job%%;*}" --kill-on-invalid-dep=yes '
    return "\n".join(lines) + "\n"
