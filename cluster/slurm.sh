#!/bin/bash
# Serve a PostgreSQL store's queue with the GPUs of one Slurm allocation: sbatch cluster/slurm.sh
# Edit the lines marked "edit"; cluster/README.md says why each is there.
#SBATCH --job-name=raymsa
# edit: machines, and GPUs on each. Every run takes one GPU, so this is 8 runs at a time.
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
# edit: on each machine. Cores: a run's resources.cpus for each GPU, and some for reading clips.
#SBATCH --cpus-per-task=32
#SBATCH --mem=128G
# edit: what your queue allows; when it is over, the job goes on in its next allocation.
#SBATCH --time=24:00:00
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=raymsa-%j.log

set -euo pipefail

: "${RAYMSA_STORE:?export it before sbatch: postgresql://... (SQLite does not belong on a shared disk)}"
: "${RAYMSA_HOME:?export it before sbatch: a folder that every machine sees at the same path}"
source "${RAYMSA_VENV:-$HOME/raymsa/.venv}/bin/activate"  # edit: the environment, also at the same path everywhere

# This script runs on the first machine, which becomes Ray's head. An address and not a name, because many machines
# know their own name as 127.0.1.1, and symmetric-run would not find the head among them.
export address="${RAYMSA_HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)}:6379"
mark="$RAYMSA_HOME/slurm-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"  # a name that no machine's file cache knows yet
export driver_pid="$mark.pid" over="$mark.over"
mkdir -p "$RAYMSA_HOME"
rm -f "$RAYMSA_HOME/slurm-$SLURM_JOB_ID-"*

RAY_AUTH_TOKEN="$(python -c 'import secrets; print(secrets.token_hex(32))')"  # of this allocation only
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Seconds; Ray's 30 are too few where every machine reads the environment from a cold shared disk.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 RAY_raylet_start_wait_time_s=180

# Where Ray does not come up (a machine that asks before the head is quite there, a slow disk), symmetric-run ends with
# code 0. So the head tries three times, and the others until the head says that all is over. What an allocation before
# this one may have left is stopped first; --exclusive makes sure that it is ours to stop.
ray_here() {
  ray stop --force &> /dev/null || true
  ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" -- \
    bash -c 'echo $$ > "$driver_pid"; exec raymsa work --until-empty --address "$address"'
}
on_each_machine() {
  local code=1
  if [ "$SLURM_NODEID" != 0 ]; then
    until [ -e "$over" ]; do ray_here || true; sleep "${RAYMSA_AGAIN_S:-30}"; done
    return 0
  fi
  for _ in 1 2 3; do
    ray_here && code=0 || code=$?
    [ -s "$driver_pid" ] && break
    code=1
  done
  touch "$over"
  return "$code"
}
export -f ray_here on_each_machine
# The head ends first; a minute later, or at once if it failed, Slurm ends the others.
srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --wait=60 --kill-on-bad-exit=1 bash -c on_each_machine &
step=$!

# Slurm's TERM reaches this script alone. Only the driver must get it: it writes checkpoints, gives its tasks back and
# ends; if Ray's own processes got it too, the runs would be gone before that.
stopping=""
stop_driver() {
  stopping=yes
  if [ -s "$driver_pid" ]; then kill -TERM "$(cat "$driver_pid")" 2> /dev/null || true; else kill -TERM "$step"; fi
}
trap stop_driver TERM

alive() { kill -0 "$1" 2> /dev/null; }

code=0
wait "$step" || code=$?  # ends early when the signal comes
if [ -n "$stopping" ]; then
  while [ -s "$driver_pid" ] && alive "$(cat "$driver_pid")"; do sleep 1; done
  echo "the driver has stopped; this job goes back into Slurm's queue, and then on from the checkpoints"
  for _ in $(seq 45); do alive "$step" && sleep 1; done  # seconds for Ray to end on every machine
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
[ -s "$driver_pid" ] || echo "Ray did not start; the reason is above" >&2
rm -f "$driver_pid" "$over"
exit "$code"
