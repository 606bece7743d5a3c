#!/bin/bash
# `teachonce shard` or `cache` as a job array: each task does one slice of the work, and a last job looks whether all is done.
#
#   id=$(sbatch --parsable --array=0-15 array.sh cache shards --teacher … --out targets.zarr)
#   sbatch --dependency=afterok:$id --kill-on-invalid-dep=yes array.sh cache shards --teacher … --out targets.zarr
#
# Paths start at the folder that sbatch was called in, which all nodes share. Options of sbatch come before array.sh.
#
#SBATCH --job-name=teachonce
#SBATCH --output=%x-%j.log --open-mode=append
#SBATCH --ntasks=1 --cpus-per-task=2 --mem=4G --time=04:00:00
# A preempted task, or one whose node failed, goes back to the queue.
#SBATCH --requeue
# A warning to this script alone, so many seconds before the time is up; more than teachonce's --grace of 60.
#SBATCH --signal=B:USR1@120

if [ -n "$SLURM_ARRAY_TASK_ID" ]; then
    part=(--slice "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT")
else
    part=(--finish)
fi
command=(teachonce "$@" "${part[@]}")

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
