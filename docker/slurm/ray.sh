#!/bin/bash
# A Ray cluster inside one Slurm job: a head on the first node, a worker on each other one, then one command of teachonce on all of them.
#
#   sbatch --nodes=3 ray.sh cache shards --teacher … --out targets.zarr
#
# Paths start at the folder that sbatch was called in, which all nodes share. Options of sbatch come before ray.sh.
#
#SBATCH --job-name=teachonce-ray
#SBATCH --output=%x-%j.log --open-mode=append
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=2 --mem=8G --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

# The cluster is this job's alone: who joins needs its token, and its port is this job's.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
port=$((20000 + SLURM_JOB_ID % 10000))
read -r -d '' -a nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | cut -d ' ' -f 1)
ray_node=(--block --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats)

# `--block` keeps each node's step, and with it its Ray, until the job ends.
srun --nodes=1 --ntasks=1 --overlap --nodelist="${nodes[0]}" \
    ray start --head --node-ip-address="$address" --port="$port" --include-dashboard=false "${ray_node[@]}" &
until ray status --address="$address:$port" >/dev/null 2>&1; do sleep 1; done
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 --overlap --nodelist="$node" ray start --address="$address:$port" "${ray_node[@]}" &
done
command=(teachonce "$@" --executor ray --ray-address "$address:$port")

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
