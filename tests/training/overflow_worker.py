"""Two optimizer steps of a single layer in fp16, the first of which overflows in one process; each says what it saw.

accelerate launch --config_file scripts/accelerate/KIND.yaml --num_processes 2 tests/training/overflow_worker.py FOLDER
"""

import sys
from pathlib import Path

import torch

from flow_grpo.training.distributed import Distributed
from flow_grpo.training.shards import whole, whole_copy

SAMPLES = torch.tensor([[0.25, 0.5], [0.75, -0.25]])  # of process 0 and 1; small, since fp16 ends at 65504

BETA = 0.9  # AdamW's share of the old in its first moment


def main(folder: Path) -> None:
    distributed = Distributed("fp16")
    # accelerate has a scaler on GPUs alone; from here on it is used as there
    distributed.scaler = distributed.accelerator.scaler = torch.amp.GradScaler("cpu")
    distributed.accelerator.native_amp = True
    layer = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    wrapped, optimizer = distributed.prepare(layer, optimizer, max_grad_norm=0.1)
    seen = []
    for factors in ((1.0, float("inf")), (1.0, 1.0)):
        distributed.begin_accumulation(1)
        with distributed.accelerator.accumulate(wrapped):
            loss = wrapped(SAMPLES[distributed.rank][None]).float().sum() * factors[distributed.rank]
            distributed.accelerator.backward(loss)
            norm = distributed.clip_gradients(list(layer.parameters()))
            optimizer.step()
            optimizer.zero_grad()
        seen.append(
            {
                "norm": norm,
                "skipped": distributed.accelerator.optimizer_step_was_skipped,
                "weight": whole(layer.weight).clone(),
                "gradient": _gradient(optimizer),
                "scale": distributed.scaler_state()["scale"],
            }
        )
    torch.save(seen, folder / f"{distributed.rank}.pt")


def _gradient(optimizer) -> torch.Tensor | None:
    """Of the optimizer's first step, after it was clipped; None before."""
    state = whole_copy(optimizer.state_dict(), keep=True)["state"]
    return state[0]["exp_avg"] / (1 - BETA) if state else None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
