"""Scores samples and pools their maps to the policy's tokens. Scoring begins batch by batch; `collect` waits for all."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flow_grpo.reward_map import pool_to_tokens
from flow_grpo.rewards import WeightedScorers, measured, weighted_sum
from flow_grpo.score import Score, to_uint8
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.failures import FailedElsewhere
from flow_grpo.training.image_signals import image_signals
from flow_grpo.training.records import Scored, TokenMap
from flow_grpo.training.samples import Sample, make_samples


@dataclass(frozen=True)
class _Batch:
    """A batch that is being scored. signals: {name: (B,)}. shown: its first images, kept to look at, uint8."""

    scores: dict[str, Future[Score]]
    group_ids: Tensor
    signals: dict[str, Tensor]
    shown: np.ndarray
    prompts: Sequence[str]


class PendingScores:
    """The scores of batches that are being scored.

    The first failure of a scorer is kept, not raised: every process of the run hears of it, and the run saves its
    checkpoint before it ends.
    token_grid: (rows, columns) to pool the maps to; None leaves the maps out.
    num_shown: how many of the first images are kept to look at; `samples` holds them after `collect`.
    """

    def __init__(self, scorers: WeightedScorers, token_grid: tuple[int, int] | None = None, num_shown: int = 0):
        self._scorers, self._token_grid, self._num_left = scorers, token_grid, num_shown
        self._batches: list[_Batch] = []
        self.samples: list[Sample] = []
        self.failure: Exception | None = None

    def submit(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], group_ids: Tensor
    ) -> None:
        """Begin to score images (B, 3, H, W) of groups group_ids (B,)."""
        try:
            scores = self._scorers.submit(images, prompts, metadata)
        except Exception as error:  # whatever a scorer raises
            self.failure = self.failure or error
            return
        # A copy: a slice would keep the pixels of the whole batch in memory.
        shown = to_uint8(images)[: self._num_left].copy() if self._num_left else np.empty(0)
        self._num_left -= len(shown)
        signals = {f"signal/{name}": values for name, values in image_signals(images).items()}
        self._batches.append(_Batch(scores, group_ids.to(images.device), signals, shown, prompts))

    def collect(self) -> Scored | None:
        """Wait for all batches. Returns None after a failure, or where there was no batch."""
        if self.failure is None and self._batches:
            try:
                return concatenate([self._collected(batch) for batch in self._batches])
            except Exception as error:  # as above
                self.failure = error
        return None

    def error(self, distributed: Distributed) -> Exception | None:
        """The error to raise if a scorer failed in any process, else None. Every process must call it."""
        if not distributed.any(self.failure is not None):
            return None
        return self.failure or FailedElsewhere("a scorer failed in another process of this run; the error stands there")

    def _collected(self, batch: _Batch) -> Scored:
        scores = {name: future.result() for name, future in batch.scores.items()}
        self.samples += make_samples(batch.shown, batch.prompts, scores, self._scorers.weights)
        rewards, valid = weighted_sum(scores, self._scorers.weights)
        details = {name: score.reward for name, score in scores.items()} | measured(scores) | batch.signals
        weights = self._scorers.weights  # a reward of weight 0 is watched, and its map spreads nothing
        mapped = [name for name in scores if scores[name].reward_map is not None and weights[name] and self._token_grid]
        return Scored(
            rewards=rewards.detach().float(),
            valid=valid,
            group_ids=batch.group_ids,
            maps={name: _token_map(scores[name], self._token_grid, valid) for name in mapped},
            details={name: values.detach().float() for name, values in details.items()},
        )


def _token_map(score: Score, token_grid: tuple[int, int], valid: Tensor) -> TokenMap:
    """A score's map on tokens. It is not valid where another scorer failed on the image."""
    values = pool_to_tokens(score.reward_map.detach().float(), token_grid)
    return TokenMap(values, score.map_kind, score.map_valid & valid, score.neutral)


def concatenate(parts: Sequence[Scored]) -> Scored:
    """Join batches, one after the other. A map that a part lacks is not valid there; a detail that it lacks is NaN there.

    Raises RuntimeError where one scorer's maps have several kinds or several neutral values.
    """
    names = dict.fromkeys(name for part in parts for name in part.details)
    maps = dict.fromkeys(name for part in parts for name in part.maps)
    return Scored(
        rewards=torch.cat([part.rewards for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
        group_ids=torch.cat([part.group_ids for part in parts]),
        maps={name: _joined(name, parts) for name in maps},
        details={
            name: torch.cat([part.details.get(name, torch.full_like(part.rewards, torch.nan)) for part in parts])
            for name in names
        },
    )


def _joined(name: str, parts: Sequence[Scored]) -> TokenMap:
    first = next(part.maps[name] for part in parts if name in part.maps)
    found = {(part.maps[name].kind, part.maps[name].neutral) for part in parts if name in part.maps}
    if len(found) > 1:
        raise RuntimeError(f"the maps of scorer {name!r} change their kind or neutral from batch to batch: {found}")

    def part_of(part: Scored) -> TokenMap:
        absent = part.rewards.new_zeros(len(part.rewards), first.values.shape[1])
        return part.maps.get(name) or TokenMap(absent, first.kind, torch.zeros_like(part.valid))

    every = [part_of(part) for part in parts]
    values, valid = torch.cat([each.values for each in every]), torch.cat([each.valid for each in every])
    return TokenMap(values, first.kind, valid, first.neutral)


def gather(scored: Scored | None, distributed: Distributed) -> Scored:
    """The samples of every process, in order of rank.

    scored: None in a process that has no samples; at least one process must have some.
    They are sent as objects, so that all processes make the same calls, whatever their scorers returned.
    """
    if distributed.num_processes == 1:
        return scored
    parts = distributed.gather_objects(scored and _to(scored, torch.device("cpu")))
    return _to(concatenate([part for part in parts if part is not None]), distributed.device)


def _to(scored: Scored, device: torch.device) -> Scored:
    return Scored(
        rewards=scored.rewards.to(device),
        valid=scored.valid.to(device),
        group_ids=scored.group_ids.to(device),
        maps={
            name: TokenMap(each.values.to(device), each.kind, each.valid.to(device), each.neutral)
            for name, each in scored.maps.items()
        },
        details={name: values.to(device) for name, values in scored.details.items()},
    )
