"""Prompts, and how an epoch deals them out in groups.

Everything is a function of (seed, epoch): nothing has to be stored for a run to go on where it stopped, and the number
of processes changes neither the prompts of an epoch, nor their groups, nor the noise of a sample.
"""

from dataclasses import dataclass
from pathlib import Path

import torch


def load_prompts(folder: str | Path, split: str) -> list[str]:
    """The prompts of `folder/split.txt`, one a line (Flow-GRPO's format); blank lines are passed over.

    Raises ValueError where the file is missing or empty.
    """
    path = Path(folder) / f"{split}.txt"
    if not path.is_file():
        raise ValueError(f"no prompts at {path}; config.dataset must be a folder with train.txt and test.txt")
    prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{path} holds no prompts; write one a line")
    return prompts


@dataclass(frozen=True)
class SampleBatch:
    """One process's batch of samples to draw.

    prompts (B,). group_ids (B,) int64: siblings, which share a prompt, share the id. seeds: (B,) one for the noise of
    each sample, its own in the whole run. start_seeds: (B,) of the initial latents: each sample's own seed, or one a group.
    """

    prompts: list[str]
    group_ids: torch.Tensor
    seeds: list[int]
    start_seeds: list[int]


@dataclass(frozen=True)
class GroupSampler:
    """Deals an epoch of num_groups groups of group_size samples to processes, batch by batch.

    The epoch's samples stand in one row, group after group; global batch b is a slice of it, and each process takes its
    part of the slice. So one process with batches of 2 B deals the same global batches as two with batches of B.

    same_start: siblings start from one latent, so that their rewards differ by the steps' noise alone, which is what the
    log-probs can learn from.
    """

    prompts: list[str]
    num_groups: int
    group_size: int
    batch_size: int
    seed: int
    rank: int = 0
    num_processes: int = 1
    same_start: bool = False

    def epoch(self, epoch: int) -> list[SampleBatch]:
        """The batches of this process."""
        chosen = self._prompt_indices(epoch)
        num_samples = self.num_groups * self.group_size
        stride = self.batch_size * self.num_processes
        batches = []
        for start in range(self.rank * self.batch_size, num_samples, stride):
            rows = range(start, start + self.batch_size)
            groups = [row // self.group_size for row in rows]
            seeds = [sample_seed(self.seed, epoch * num_samples + row) for row in rows]
            firsts = [sample_seed(self.seed, epoch * num_samples + group * self.group_size) for group in groups]
            batches.append(
                SampleBatch(
                    prompts=[self.prompts[chosen[group]] for group in groups],
                    group_ids=torch.tensor(groups),
                    seeds=seeds,
                    start_seeds=firsts if self.same_start else seeds,
                )
            )
        return batches

    def _prompt_indices(self, epoch: int) -> list[int]:
        """Walk through shuffled passes over the prompts, so that each is drawn equally often."""
        indices = range(epoch * self.num_groups, (epoch + 1) * self.num_groups)
        num_prompts = len(self.prompts)
        passes = {i // num_prompts for i in indices}
        orders = {p: torch.randperm(num_prompts, generator=seeded(self.seed, p)).tolist() for p in passes}
        return [orders[i // num_prompts][i % num_prompts] for i in indices]


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator for this tuple of numbers."""
    return torch.Generator().manual_seed(sample_seed(*numbers))


def sample_seed(*numbers: int) -> int:
    """Mix numbers into one 63-bit seed; neighbouring numbers give unrelated seeds (splitmix64's finaliser)."""
    mask, state = (1 << 64) - 1, 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1
