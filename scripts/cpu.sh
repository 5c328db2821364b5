#!/usr/bin/env bash
# RUN (tiny_ocr_map), a run of config/grpo.py, on NUM_PROCESSES (2) processes without a GPU. Further flags: --config.FIELD=VALUE
# KIND=fsdp2 instead of DDP, as in one_node.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
launch="scripts/accelerate/${KIND:-cpu}.yaml"
if [[ ! -f "$launch" ]]; then
    echo "cpu.sh: KIND=$KIND is none of ddp, fsdp2" >&2
    exit 2
fi
processes="${NUM_PROCESSES:-2}"
export ACCELERATE_USE_CPU=true OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# exec: a signal to this script reaches the launcher
# port 0: a free one, so that several runs may start on one machine
exec python -m scripts.launch --config_file "$launch" --num_processes "$processes" --main_process_port 0 \
    train_sd3.py --config config/grpo.py:"${RUN:-tiny_ocr_map}" --config.num_gpus="$processes" "$@"
