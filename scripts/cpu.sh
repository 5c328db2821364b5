#!/usr/bin/env bash
# RUN (tiny_ocr_map), a run of config/grpo.py, on NUM_PROCESSES (2) processes without a GPU. Further flags: --config.FIELD=VALUE
set -euo pipefail
cd "$(dirname "$0")/.."
processes="${NUM_PROCESSES:-2}"
ACCELERATE_USE_CPU=true OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" \
    accelerate launch --config_file scripts/accelerate/cpu.yaml --num_processes "$processes" \
    train_sd3.py --config config/grpo.py:"${RUN:-tiny_ocr_map}" --config.num_gpus="$processes" "$@"
