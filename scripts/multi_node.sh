#!/usr/bin/env bash
# RUN (ocr_map_sd3), a run of config/grpo.py, on several machines of NUM_GPUS (8) GPUs each; run it once on every machine.
#
#   by hand   NUM_NODES=4 NODE_RANK=0..3 MASTER_ADDR=HOST_OF_NODE_0 scripts/multi_node.sh
#   Slurm     srun --nodes=4 --ntasks-per-node=1 --gpus-per-node=8 scripts/multi_node.sh
#
# KIND=fsdp2 instead of DDP, as in one_node.sh.
# The run's folder must be one that all machines share. Further flags are the run's: --config.FIELD=VALUE
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/accelerate/require_gpu.sh
launch="scripts/accelerate/${KIND:-multi_node}.yaml"
if [[ ! -f "$launch" ]]; then
    echo "multi_node.sh: KIND=$KIND is none of ddp, fsdp2" >&2
    exit 2
fi

gpus="${NUM_GPUS:-${SLURM_GPUS_ON_NODE:-8}}"
NUM_NODES="${NUM_NODES:-${NNODES:-${SLURM_NNODES:-}}}"
NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-}}"
if [[ -z "${MASTER_ADDR:-}" && -n "${SLURM_JOB_NODELIST:-}" ]]; then
    MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
fi
for name in NUM_NODES NODE_RANK MASTER_ADDR; do
    if [[ -z "${!name:-}" ]]; then
        echo "multi_node.sh: set NUM_NODES, NODE_RANK and MASTER_ADDR, or start it by srun; $name is missing" >&2
        exit 2
    fi
done
processes=$((NUM_NODES * gpus))

exec python -m scripts.launch --config_file "$launch" \
    --num_machines "$NUM_NODES" --machine_rank "$NODE_RANK" --num_processes "$processes" \
    --main_process_ip "$MASTER_ADDR" --main_process_port "${MASTER_PORT:-29500}" \
    train_sd3.py --config config/grpo.py:"${RUN:-ocr_map_sd3}" --config.num_gpus="$processes" "$@"
