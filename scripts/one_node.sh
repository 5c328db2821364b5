#!/usr/bin/env bash
# RUN (ocr_map_sd3), a run of config/grpo.py, on the GPUs of one machine: NUM_GPUS (8). Further flags: --config.FIELD=VALUE
# KIND: ddp, a copy of the model on each; fsdp2, the model in parts, where it does not fit beside the activations.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/accelerate/require_gpu.sh
launch="scripts/accelerate/${KIND:-ddp}.yaml"
if [[ ! -f "$launch" ]]; then
    echo "one_node.sh: KIND=$KIND is none of ddp, fsdp2" >&2
    exit 2
fi
gpus="${NUM_GPUS:-8}"
# exec: a signal to this script reaches the launcher
# port 0: a free one, so that several runs may start on one machine
exec python -m scripts.launch --config_file "$launch" --num_processes "$gpus" --main_process_port 0 \
    train_sd3.py --config config/grpo.py:"${RUN:-ocr_map_sd3}" --config.num_gpus="$gpus" "$@"
