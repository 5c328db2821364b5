"""What the CLIP map scorers share: they turn a batch into a Score with an importance map; several share one pass."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..reward_map import normalise
from ..score import Score, check_images
from .model import ClipModel, check_divisor, finite_rewards
from .trace import Request, Trace

UNIFORM = 0.5  # the value of a map that points nowhere
MIN_CONTRAST = 1e-5  # of a map in [0, 1]; a smaller contrast is only rounding error from `spread`


class TracedScorer(Protocol):
    """A scorer that makes its Score from one pass of its model: the CLIP map scorers and `clipscore`."""

    clip: ClipModel
    request: Request

    def score(self, trace: Trace, device: torch.device) -> Score:
        """The Score, on the device, of a pass that kept at least what the request asks for."""


class ClipMapScorer(ABC):
    """A CLIP score with a map of where it comes from.

    A subclass defines `request`, what it needs from the pass, and `window_map`, the map that it makes from that.
    clip: the model, shared between scorers. logit_divisor: the reward is the logit divided by this.

    The Score's map has kind "importance". CLIP's centre crop cuts some pixels away. They get the mean of the others, so that
    `token_advantages` weighs them with exactly 1. A map without contrast (Grad-CAM's ReLU may leave only zeros) or with NaN
    or Inf becomes uniform, and is marked as not valid. An image whose score is NaN or Inf is not valid at all.
    details: "truncated" is 1 where the prompt was longer than the model reads; "fallback" is 1 where the map is uniform.
    """

    request: Request

    def __init__(self, clip: ClipModel, logit_divisor: float):
        check_divisor(logit_divisor)
        clip.tower.check(self.request)
        self.clip = clip
        self._logit_divisor = logit_divisor

    @abstractmethod
    def window_map(self, trace: Trace) -> Tensor:
        """(B, h, w) in [0, 1] for the pixels of the trace's window. A constant means that there is no map."""

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Score:
        """Score images (B, 3, H, W), float in [0, 1]. Raises ValueError for bad input."""
        return score_together([self], images, prompts, metadata)[0]

    def score(self, trace: Trace, device: torch.device) -> Score:
        """The Score, on the device, of a pass that kept at least what the request asks for."""
        inside = self.window_map(trace)
        low, high = inside.amin(dim=(1, 2)), inside.amax(dim=(1, 2))
        fallback = ~(high - low > MIN_CONTRAST)  # (B,)
        inside = torch.where(fallback[:, None, None], UNIFORM, inside)
        reward_map = inside.mean(dim=(1, 2))[:, None, None].repeat(1, *trace.size)  # (B, H, W)
        rows, cols = trace.window
        reward_map[:, rows, cols] = inside
        rewards, valid = finite_rewards(trace.logits / self._logit_divisor)
        details = {"truncated": trace.truncated.float(), "fallback": fallback.float()}
        return Score(
            reward=rewards.to(device),
            reward_map=reward_map.to(device),
            map_kind="importance",
            map_valid=(valid & ~fallback).to(device),
            details={name: values.to(device) for name, values in details.items()},
            valid=valid.to(device),
        )


def score_together(
    scorers: Sequence[TracedScorer],
    images: Tensor,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]] | None = None,
) -> list[Score]:
    """The Score of each scorer. They share one model, and all Scores come from one pass through it.

    Raises ValueError for bad input, and for scorers of different models.
    """
    check_images(images, prompts, metadata)
    if len({id(scorer.clip) for scorer in scorers}) != 1:
        raise ValueError(
            "scorers share a pass only where they share a model; build them with the same model and device"
        )
    request = Request()
    for scorer in scorers:
        request |= scorer.request
    trace = scorers[0].clip.trace(images, prompts, request)
    with torch.autocast(trace.logits.device.type, enabled=False):  # a rollout multiplies matrices
        return [scorer.score(trace, images.device) for scorer in scorers]


def spread(relevance: Tensor, trace: Trace) -> Tensor:
    """Stretch the relevance of the patches (B, rows, cols), on any scale, to [0, 1], and spread it over the window's pixels."""
    return trace.to_window(normalise(without_gaps(relevance)))


def without_gaps(values: Tensor) -> Tensor:
    """Maps (B, ., .). A map that holds a NaN or Inf anywhere becomes zero."""
    return torch.where(values.isfinite().all(dim=2).all(dim=1)[:, None, None], values, 0)
