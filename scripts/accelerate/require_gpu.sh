# Sourced by the launch scripts for GPUs: refuses to start where there is none. ACCELERATE_USE_CPU=true asks for CPUs.
if [[ "${ACCELERATE_USE_CPU:-}" != true ]] && ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
    echo "$(basename "$0"): nvidia-smi finds no GPU on this machine; scripts/cpu.sh trains the embedded tiny model on CPUs" >&2
    exit 2
fi
