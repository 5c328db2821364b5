"""Prompts, and how an epoch deals them out in groups.

Everything is a function of (seed, epoch): nothing has to be stored for a run to go on where it stopped, and the number
of processes changes neither the prompts of an epoch, nor their groups, nor the noise of a sample.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flow_grpo.training.seeds import sample_seed, seeded

# What a split's file may be called; the last is Flow-GRPO's name for its GenEval prompts.
_ENDINGS = (".txt", ".jsonl", "_metadata.jsonl")


def load_prompts(folder: str | Path, split: str) -> list[str]:
    """The prompts of a split, in order; blank lines of its file are passed over.

    The file is one of `split.txt`, one prompt a line (Flow-GRPO's format), or `split.jsonl` or `split_metadata.jsonl`, one
    mapping with a "prompt" a line. Raises ValueError where none or several of them stand in the folder, where the file is
    empty, and, with file and line, where a line cannot be read.
    """
    return [prompt for prompt, _ in _read(folder, split)]


def load_metadata(folder: str | Path, split: str) -> list[dict[str, Any]]:
    """What scorers are told beside each of `load_prompts`'s prompts, in the same order; raises what that raises.

    Of a line of JSON it is the value of "metadata", or, where there is no such key, the whole line, as Flow-GRPO hands its
    GenEval prompts to the scorer. Of a line of text it is empty.
    """
    return [metadata for _, metadata in _read(folder, split)]


def _read(folder: str | Path, split: str) -> list[tuple[str, dict[str, Any]]]:
    path = _split_file(Path(folder), split)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        rows = [(line.strip(), {}) for line in text.splitlines() if line.strip()]
    else:  # not splitlines: JSON's texts may hold other characters that it takes for the end of a line
        lines = enumerate(text.split("\n"), 1)
        rows = [_parse_json(line, f"{path}:{number}") for number, line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{path} holds no prompts; write one a line")
    return rows


def _split_file(folder: Path, split: str) -> Path:
    found = [path for ending in _ENDINGS if (path := folder / f"{split}{ending}").is_file()]
    if not found:
        raise ValueError(
            f"no prompts at {folder / split}.txt; config.dataset must be a folder with train.txt and test.txt, "
            "or with train.jsonl and test.jsonl"
        )
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ValueError(f"{folder} has both {names}; keep the one that holds the {split} prompts")
    return found[0]


def _parse_json(line: str, where: str) -> tuple[str, dict[str, Any]]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f'{where}: not JSON ({error}); write one mapping with a "prompt" a line') from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
        raise ValueError(f'{where}: expected a mapping with a text under "prompt", got {line[:80]}')
    if "metadata" not in entry:
        return entry["prompt"].strip(), entry
    ignored = sorted(entry.keys() - {"prompt", "metadata"})
    if ignored or not isinstance(entry["metadata"], dict):
        raise ValueError(
            f'{where}: "metadata" must be a mapping, and hold all that a scorer is told; '
            + (f"move {', '.join(ignored)} into it" if ignored else f"got {entry['metadata']!r}")
        )
    return entry["prompt"].strip(), entry["metadata"]


@dataclass(frozen=True)
class SampleBatch:
    """One process's batch of samples to draw.

    prompts (B,). metadata: (B,) what scorers are told beside each. group_ids (B,) int64: siblings, which share a prompt,
    share the id. seeds: (B,) one for the noise of each sample, its own in the whole run. start_seeds: (B,) of the initial
    latents: each sample's own seed, or one a group.
    """

    prompts: list[str]
    metadata: list[dict[str, Any]]
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

    metadata: beside each prompt, for the scorers (`load_metadata`); None: nothing to tell.
    """

    prompts: list[str]
    num_groups: int
    group_size: int
    batch_size: int
    seed: int
    rank: int = 0
    num_processes: int = 1
    same_start: bool = False
    metadata: list[dict[str, Any]] | None = None

    def __post_init__(self):
        if self.metadata is not None and len(self.metadata) != len(self.prompts):
            raise ValueError(f"{len(self.metadata)} metadata for {len(self.prompts)} prompts; give each prompt its own")

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
                    metadata=[self.metadata[chosen[group]] if self.metadata else {} for group in groups],
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
