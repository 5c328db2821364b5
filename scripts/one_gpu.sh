#!/usr/bin/env bash
# RUN (ocr_map_sd3), a run of config/grpo.py, on one GPU of 80 GB. Further flags are the run's: --config.FIELD=VALUE
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/accelerate/require_gpu.sh
# exec: a signal to this script reaches the run
exec python train_sd3.py --config config/grpo.py:"${RUN:-ocr_map_sd3}" --config.num_gpus=1 "$@"
