"""The scores of an epoch's samples, with their maps pooled to the policy's tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from flow_grpo.reward_map import pool_to_tokens
from flow_grpo.rewards import MultiScore
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.image_signals import image_signals
from flow_grpo.training.records import Scored, TokenMap
from flow_grpo.training.samples import RecordingScore


def submit_samples(
    score_fn: MultiScore | RecordingScore,
    images: torch.Tensor,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    group_ids: torch.Tensor,
    token_grid: tuple[int, int] | None,
) -> Callable[[], Scored]:
    """Begin to score images (B, 3, H, W); the function returned waits for them. Nothing of it carries a gradient.

    token_grid: (rows, columns) to pool the maps to; None leaves them out.
    """
    pending = score_fn.submit(images, prompts, metadata)
    group_ids = group_ids.to(images.device)
    signals = {f"signal/{name}": values for name, values in image_signals(images).items()}

    def scored() -> Scored:
        details, extras = pending()
        measured = {name: values for name, values in details.items() if name != "avg"} | extras["details"] | signals
        return Scored(
            rewards=details["avg"].detach().float(),
            valid=extras["valid"],
            group_ids=group_ids,
            maps={
                name: TokenMap(
                    pool_to_tokens(entry["reward_map"].detach().float(), token_grid),
                    entry["map_kind"],
                    entry["map_valid"] & extras["valid"],  # another scorer may have failed on the image
                )
                for name, entry in (extras["maps"].items() if token_grid else ())
            },
            details={name: values.detach().float() for name, values in measured.items()},
        )

    return scored


class PendingScores:
    """The scores of an epoch's batches, on their way; holds the first failure of a scorer instead of raising it.

    So that every process of a run hears of it, and the run can save its checkpoint before it ends.
    """

    def __init__(self, score_fn: MultiScore | RecordingScore, token_grid: tuple[int, int] | None):
        self._score_fn, self._token_grid = score_fn, token_grid
        self._pending: list[Callable[[], Scored]] = []
        self.failure: Exception | None = None

    def submit(
        self,
        images: torch.Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        group_ids: torch.Tensor,
    ) -> None:
        try:
            self._pending.append(submit_samples(self._score_fn, images, prompts, metadata, group_ids, self._token_grid))
        except Exception as error:
            self.failure = self.failure or error

    def collect(self) -> Scored | None:
        """Wait for all of them; None after a failure."""
        if self.failure is None:
            try:
                return concatenate([scored() for scored in self._pending])
            except Exception as error:
                self.failure = error
        return None


def concatenate(parts: Sequence[Scored]) -> Scored:
    """Batches one after the other."""
    return _join(parts, torch.cat)


def gather(scored: Scored, distributed: Distributed) -> Scored:
    """The samples of every process, in order of rank."""
    return _join([scored], lambda tensors: distributed.gather(tensors[0]))


def _join(parts: Sequence[Scored], join: Callable[[list[torch.Tensor]], torch.Tensor]) -> Scored:
    return Scored(
        rewards=join([part.rewards for part in parts]),
        valid=join([part.valid for part in parts]),
        group_ids=join([part.group_ids for part in parts]),
        maps={
            name: TokenMap(
                join([part.maps[name].values for part in parts]),
                parts[0].maps[name].kind,
                join([part.maps[name].valid for part in parts]),
            )
            for name in parts[0].maps
        },
        details={name: join([part.details[name] for part in parts]) for name in parts[0].details},
    )
