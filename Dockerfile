# The GPU set-up as a container. It has not been run on a GPU by us.
#
#   docker build -t flow-grpo .
#   docker run --gpus all --shm-size 16g -v $PWD/runs:/app/runs -v $HOME/.cache/huggingface:/root/.cache/huggingface \
#       flow-grpo scripts/one_gpu.sh
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv g++ libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1

WORKDIR /app
# torch first and by itself, so that nothing later exchanges its build
COPY requirements-gpu.lock ./
RUN pip install --no-cache-dir "$(grep '^torch==' requirements-gpu.lock)" \
    && pip install --no-cache-dir -r requirements-gpu.lock
COPY . .
CMD ["scripts/one_gpu.sh"]
