# The GPU set-up as a container. We have neither built it nor run it: we had no Docker. What was checked: every pin of
# requirements-gpu.lock is there for this Python and Linux, and they satisfy setup.py.
#
#   docker build -t flow-grpo .
#   docker run --gpus all --shm-size 16g -v $PWD/runs:/app/runs -v $HOME/.cache/huggingface:/root/.cache/huggingface \
#       flow-grpo scripts/one_gpu.sh
#
# The Python of the lock. torch brings CUDA 13.0 itself, so the host needs NVIDIA's driver (580 or later) and its container toolkit.
FROM python:3.11-slim-bookworm

# g++ for torch.compile; libgl1 and libglib2.0-0 for OpenCV
RUN apt-get update && apt-get install -y --no-install-recommends g++ libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
ENV PYTHONUNBUFFERED=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /app
# torch first and by itself, so that nothing later exchanges its build
COPY requirements-gpu.lock ./
RUN pip install --no-cache-dir "$(grep '^torch==' requirements-gpu.lock)" \
    && pip install --no-cache-dir -r requirements-gpu.lock
COPY . .
CMD ["scripts/one_gpu.sh"]
