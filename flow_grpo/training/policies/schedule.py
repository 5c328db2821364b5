"""The noise levels of a sampling run, from the pipeline's own scheduler."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler


def scheduler_sigmas(
    scheduler: FlowMatchEulerDiscreteScheduler, num_steps: int, shift: float, device: torch.device
) -> torch.Tensor:
    """The sigmas (num_steps + 1,) that the scheduler makes from even steps between 1 and 0.

    shift: for a scheduler whose shift depends on the image's size (`use_dynamic_shifting`). Any other scheduler uses the
    shift in its own configuration.
    """
    even = [1 - step / num_steps for step in range(num_steps)]
    scheduler.set_timesteps(sigmas=even, mu=shift, device=device)
    return scheduler.sigmas.clone().float()


def linear_shift(config: Mapping[str, Any], num_tokens: int) -> float:
    """The shift for an image of num_tokens tokens: the more tokens, the longer the image stays noisy.

    It is a line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift) of the scheduler's
    configuration. The defaults are those of the pipelines.
    """
    base, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base_shift, max_shift = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return base_shift + (max_shift - base_shift) * (num_tokens - base) / (most - base)
