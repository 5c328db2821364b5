#!/usr/bin/env bash
# RUN (ocr_map_sd3), a run of config/grpo.py, on the GPUs of one machine: NUM_GPUS (8), by DDP. Further flags: --config.FIELD=VALUE
set -euo pipefail
cd "$(dirname "$0")/.."
gpus="${NUM_GPUS:-8}"
accelerate launch --config_file scripts/accelerate/ddp.yaml --num_processes "$gpus" \
    train_sd3.py --config config/grpo.py:"${RUN:-ocr_map_sd3}" --config.num_gpus="$gpus" "$@"
