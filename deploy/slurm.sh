#!/bin/bash
# Runs a recipe on the nodes of a SLURM job, which form a Ray cluster. A job that is preempted, or that reaches its time limit, writes a
# checkpoint, is queued again, and goes on.
#
#   sbatch --nodes 4 deploy/slurm.sh general_rl --preset 32B --run-dir /shared/runs/mine
#
# VENV is the environment with sapo, and it, the model and the run's folder are on storage that all nodes can read.
#SBATCH --job-name=sapo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
set -euo pipefail

: "${SLURM_JOB_ID:?there is no SLURM job: start this script by sbatch}"
VENV=${VENV:-$SLURM_SUBMIT_DIR/.venv}
PORT=${PORT:-$((20000 + SLURM_JOB_ID % 20000))}  # jobs that share a node have clusters of their own
export PATH=$VENV/bin:$PATH

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')
export RAY_ADDRESS=$address:$PORT

srun --nodes=1 --ntasks=1 -w "$head" --overlap \
    ray start --head --block --node-ip-address="$address" --port="$PORT" --include-dashboard=false --disable-usage-stats &
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 -w "$node" --overlap ray start --block --address="$RAY_ADDRESS" --disable-usage-stats &
done
alive() {
    python -c "import ray; ray.init('$RAY_ADDRESS', log_to_driver=False); print(sum(node['Alive'] for node in ray.nodes()))" 2>/dev/null ||
        echo 0
}
until [ "$(alive)" -ge "${#nodes[@]}" ]; do
    sleep 2
done

# The signal comes to this script, 180 s before the job's end. The run needs at most --stop-timeout, 60 s.
sapo train "$@" --resume auto &
run=$!
trap 'kill -TERM $run' TERM
while kill -0 $run 2>/dev/null; do
    wait $run || true  # a signal ends the wait, not the run
done
status=0
wait $run || status=$?
ray stop --force >/dev/null 2>&1 || true
if [ $status -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
