"""Two optimizer steps of every family's tiny pipeline in bf16, by one process or by several that share the weights (FSDP2).

accelerate launch --config_file scripts/accelerate/fsdp2.yaml --num_processes 2 tests/training/policies/sharded_worker.py \\
    FOLDER FAMILY=PIPELINE_FOLDER ...

FOLDER/FAMILY-ADAPTER/ then holds what the main process writes, and RANK.pt, what each process saw. There are two samples to
an update: one process takes them one by one, and of two processes each takes one. So the same kernels run.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule

from flow_grpo.training.checkpoint import Origin, checkpoint_name, load_checkpoint, take_snapshot, write_checkpoint
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.ema import ExponentialMovingAverage
from flow_grpo.training.policies.base import Policy
from flow_grpo.training.policies.load import load_policy
from flow_grpo.training.records import Credit
from flow_grpo.training.rollout import SDE, rollout
from flow_grpo.training.shards import whole_copy
from flow_grpo.training.update import Updater, UpdateRule
from tests.training.policies.tiny.layout import tiny

NUM_SAMPLES, NUM_UPDATES = 2, 2
PROMPTS = ["a sign", 'a green star, a pink sign "RAM" and a black sign "SOB"']
RULE = UpdateRule(
    ratio="gspo_token",
    clip_range=0.1,
    ratio_norm=False,
    beta=0.04,
    exact_kl=False,
    skip_zero_advantages=False,
    drop_zero_advantages=False,
)
ADAPTERS = {
    "lora": dict(lora_rank=4, lora_alpha=8, offload=True),
    "full": dict(lora_rank=4, lora_alpha=8, adapter="full"),
}


class Run:
    """A policy with what trains it, checkpointed blocks and a KL to the base."""

    def __init__(self, family: str, pipeline: str, adapter: str, distributed: Distributed):
        torch.manual_seed(0)
        self.distributed = distributed
        side = 4 * tiny(family).LAYOUT.pixels
        options = dict(resolution=side, max_sequence_length=72) | ADAPTERS[adapter]
        self.policy = load_policy(family, pipeline, distributed.mixed_precision, **options)
        self.policy.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW(self.policy.trainable_parameters(), lr=1e-3)
        # No gradient is so long: a clipped one depends, in the last bit, on the order in which its norm is summed.
        self.policy.forward_module, self.optimizer = distributed.prepare(self.policy.network, optimizer, 1e9)
        self.policy.keep_base()
        self.ema = ExponentialMovingAverage(self.policy.trainable_parameters(), decay=0.5, update_every=1)

    def train(self) -> dict:
        """Two updates on this process's samples. Each sample has a prompt, a noise and an advantage of its own."""
        drawn, advantages, sde = [], [], SDE(3, noise_level=0.7)
        for update in range(NUM_UPDATES):
            for sample in range(self.distributed.rank, NUM_SAMPLES, self.distributed.num_processes):
                number = update * NUM_SAMPLES + sample
                drawn.append(rollout(self.policy, [PROMPTS[sample]], [number], sde, num_kept=1))
                advantages.append(torch.linspace(-1, 2, 16).roll(5 * number))
        updater = Updater(self.policy, self.optimizer, self.ema, self.distributed, RULE)
        credit = Credit(torch.stack(advantages)[None], None, None)  # (1, B, 16)
        metrics = updater.run(drawn, credit, sde, NUM_UPDATES, title="two updates")
        return {"images": torch.cat([each.images for each in drawn]), "metrics": metrics}

    def save(self, folder: Path) -> dict:
        """Write the checkpoint and, of all weights, the pipeline; change every weight, and read the checkpoint again.

        Returns what this process kept to write them, and the averaged weights.
        """
        policy = self.policy
        snapshot = take_snapshot(policy, self.optimizer, self.ema, 1, self.distributed)
        if snapshot is not None:
            write_checkpoint(folder, snapshot, policy, {}, 1, Origin())
            if policy.adapter.name == "transformer":
                policy.adapter.save_pipeline(folder / "pipeline", snapshot.averaged)
        self.distributed.wait_for_everyone()
        with self.ema.applied():
            averaged = copied(policy)
        with torch.no_grad():
            for parameter in policy.trainable_parameters():
                parameter.add_(1)
        load_checkpoint(folder / checkpoint_name(1), policy, self.optimizer, self.ema, self.distributed)
        return {"kept": snapshot and snapshot.state, "averaged": averaged}

    def state(self) -> dict:
        optimizer = whole_copy(self.optimizer.state_dict(), keep=True)["state"]
        return {
            "weights": copied(self.policy),
            "moments": {index: state["exp_avg"] for index, state in optimizer.items()},
            "velocity": velocity(self.policy),
        }


def copied(policy: Policy) -> dict:
    return whole_copy(policy.adapter_state(), keep=True)


@torch.no_grad()
def velocity(policy: Policy) -> torch.Tensor:
    latents = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    return policy.velocity(latents, torch.tensor(0.6), policy.encode_prompts(PROMPTS[:1]))


def blocks(policy: Policy) -> Iterator[str]:
    """The names of the transformer's blocks, stack after stack."""
    for stack, modules in policy.network.named_children():
        if isinstance(modules, torch.nn.ModuleList):
            yield from (f"{stack}.{index}" for index in range(len(modules)))


def main(folder: Path, families: list[str]) -> None:
    distributed = Distributed("bf16")
    for family, pipeline in (pair.split("=") for pair in families):
        for adapter in ADAPTERS:
            own = folder / f"{family}-{adapter}"
            run = Run(family, pipeline, adapter, Distributed("bf16"))
            seen = {
                "parameter": type(run.policy.trainable_parameters()[0]).__name__,
                "sharded": [name for name, part in run.policy.network.named_modules() if isinstance(part, FSDPModule)],
                "blocks": list(blocks(run.policy)),
                "start": run.state(),
                "trained": run.train() | run.state(),
            }
            with run.policy.disable_adapter():
                seen["base"] = velocity(run.policy)
            seen |= run.save(own) | {"again": run.state()}
            torch.save(seen, own / f"{distributed.rank}.pt")
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
