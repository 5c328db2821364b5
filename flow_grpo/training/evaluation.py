"""Scores the policy on held-out prompts. Each prompt has one fixed noise, and counts once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from flow_grpo.rewards import WeightedScorers
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.policies.base import Policy
from flow_grpo.training.records import Scored
from flow_grpo.training.rollout import SDE, rollout
from flow_grpo.training.samples import Sample
from flow_grpo.training.scoring import PendingScores, gather
from flow_grpo.training.seeds import Domain, sample_seed


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    metrics: means over the prompts.
    samples: the first samples of the main process; empty in the other processes.
    values: {measure: one value per prompt, in the order of the prompts}. The measures are `reward`, the gold rewards and
        the image signals. A value is None where the image could not be scored.
    """

    metrics: dict[str, float]
    samples: list[Sample]
    values: dict[str, list[float | None]]


def evaluate(
    policy: Policy,
    prompts: list[str],
    metadata: list[dict[str, Any]],
    scorers: WeightedScorers,
    sde: SDE,
    batch_size: int,
    seed: int,
    distributed: Distributed,
    num_samples: int = 16,
    gold: WeightedScorers | None = None,
    sizes: list[tuple[int, int]] | None = None,
) -> Evaluation:
    """Evaluate the policy. Every process must call it; each takes every num_processes-th prompt, all get the same metrics.

    sizes: (height, width) of each prompt's images. A batch is of one size, and the policy is left at the last one. None takes
        the policy's own size.
    gold: scorers that are watched but not trained on; their metrics are eval/gold/<scorer>.
    Means are over the images that could be scored; invalid_share is the share of the others.
    """
    pending = PendingScores(scorers, num_shown=num_samples if distributed.is_main else 0)
    watched = PendingScores(gold) if gold else None
    asked = [pending, watched] if watched else [pending]
    for indices, images in _sampled(policy, prompts, sizes, sde, batch_size, seed, distributed, asked):
        told = [prompts[i] for i in indices], [metadata[i] for i in indices]
        for each in asked:
            each.submit(images, *told, torch.tensor(indices))
    scored = _collected(pending, distributed)
    if not scored.valid.any():
        raise RuntimeError(
            f"none of the {len(scored.valid)} images of an evaluation could be scored; the log has each cause"
        )
    measured = {"reward": scored.rewards} | scored.details
    if len(scorers.weights) == 1:  # a single scorer's reward is "reward", apart from its weight
        del measured[next(iter(scorers.weights))]
    metrics = {f"eval/{name}": float(values[scored.valid].double().nanmean()) for name, values in measured.items()}
    metrics["eval/invalid_share"] = float((~scored.valid).double().mean())
    values = {"reward": _by_prompt(scored, scored.rewards)}
    values |= {name: _by_prompt(scored, each) for name, each in scored.details.items() if name.startswith("signal/")}
    if watched:
        seen = _collected(watched, distributed)
        own = {name: each for name, each in seen.details.items() if not name.startswith("signal/")}
        metrics |= {f"eval/gold/{name}": float(each[seen.valid].double().nanmean()) for name, each in own.items()}
        values |= {f"gold/{name}": _by_prompt(seen, seen.details[name]) for name in gold.weights}
    return Evaluation(metrics, pending.samples, values)


def _sampled(
    policy: Policy,
    prompts: list[str],
    sizes: list[tuple[int, int]] | None,
    sde: SDE,
    batch_size: int,
    seed: int,
    distributed: Distributed,
    asked: list[PendingScores],
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Sample this process's prompts in batches: their indices, and their images (B, 3, H, W). Stops where scores failed."""
    batches = _batches(sizes or [None] * len(prompts), batch_size * distributed.num_processes)
    for batch in tqdm(batches, desc="evaluation", leave=False, disable=not distributed.is_main):
        if distributed.any(any(pending.failure is not None for pending in asked)):
            break
        if sizes:
            policy.set_resolution(sizes[batch[0]])
        indices = batch[distributed.rank :: distributed.num_processes]
        # Every batch is filled up, because another batch size would be compiled anew. A process without prompts samples
        # too: with FSDP2 each process holds a part of the weights, and the others need it.
        filled = indices + [0] * (batch_size - len(indices))
        seeds = [sample_seed(Domain.EVALUATION, seed, i) for i in filled]
        images = rollout(policy, [prompts[i] for i in filled], seeds, sde, num_kept=0).images
        if indices:
            yield indices, images[: len(indices)]


def _batches(sizes: Sequence, num: int) -> list[list[int]]:
    """The indices of the prompts in batches of at most num, each of one size, ordered by their first prompt."""
    of_size = {size: [i for i, own in enumerate(sizes) if own == size] for size in dict.fromkeys(sizes)}
    return sorted(own[start : start + num] for own in of_size.values() for start in range(0, len(own), num))


def _collected(pending: PendingScores, distributed: Distributed) -> Scored:
    """The scores of all processes, joined without padding, so that no prompt counts twice."""
    scored = pending.collect()
    if error := pending.error(distributed):
        raise error
    return gather(scored, distributed)


def _by_prompt(scored: Scored, values: torch.Tensor) -> list[float | None]:
    """One value per prompt, in the order of the prompts. The group_ids of the samples are the indices of the prompts."""
    order = scored.group_ids.argsort()
    known = scored.valid[order] & values[order].isfinite()
    return [value if ok else None for value, ok in zip(values[order].tolist(), known.tolist())]
