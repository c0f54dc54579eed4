#!/bin/bash
# Checks and measures the learner on one NVIDIA GPU of 80 GiB or more, in about ten minutes. It needs torch, transformers and the other
# packages of this project, but neither vLLM nor Ray.
#
#   bench/device.sh [FOLDER]     FOLDER gets the figures and the logs; default: bench/results/device
#
# PYTHON names the interpreter. A part that fails does not stop the others; the script then ends with status 1.
set -u
python=${PYTHON:-python}
results=$(realpath -m "${1:-bench/results/device}")
cd "$(dirname "$0")/.." || exit 1
mkdir -p "$results"
policies=$(mktemp -d)
trap 'rm -rf "$policies"' EXIT
failed=()

# part NAME SECONDS MODULE OPTIONS...
part() {
    local name=$1 seconds=$2
    shift 2
    echo "== $name: python -m $*"
    timeout "$seconds" "$python" -m "$@" > "$results/$name.log" 2>&1 || failed+=("$name")
    tail -n 15 "$results/$name.log"
}

# measure NAME SECONDS MODULE OPTIONS...: the same, with a file of figures
measure() {
    local name=$1
    part "$@" --output "$results/$name.json"
}

gpu_learner="bench.learner --device cuda --response-tokens 1024 --learner.gradient-checkpointing"
part tests 180 pytest -m gpu tests/rl/learner/test_gpu.py tests/policies/test_packing.py
measure 2B 120 $gpu_learner --shape 2B --policy "$policies/2B"
measure 2B-padded 120 $gpu_learner --shape 2B --policy "$policies/2B" --learner.no-packing --steps 1
measure 2B-offload 180 $gpu_learner --shape 2B --policy "$policies/2B" --learner.offload --learner.threads 8 --steps 2
measure 2B-export 120 bench.export --device cuda --shape 2B --policy "$policies/2B"
measure 2B-export-offload 120 bench.export --device cuda --shape 2B --policy "$policies/2B" --offload
# All weights of the 4B shape take 85 GB, those of 8B 160 GB: adapters alone fit 80 GiB.
measure 4B-lora 150 $gpu_learner --shape 4B --policy "$policies/4B" --lora.rank 16 --steps 2
if [ "$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1)" -gt 100000 ]; then
    measure 4B 150 $gpu_learner --shape 4B --policy "$policies/4B" --steps 2
fi
measure 8B-lora 200 $gpu_learner --shape 8B --policy "$policies/8B" --lora.rank 16 --steps 2
measure logprobs 60 bench.logprobs --device cuda

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
