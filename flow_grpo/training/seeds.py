"""Makes seeds from numbers alone, so that a run can draw again what it drew.

Each use has its own domain. So an evaluation never has the noise of a rollout, whatever the numbers are.
"""

from enum import IntEnum

import numpy as np
import torch


class Domain(IntEnum):
    """What a seed is for. The numbers are part of every seed: a new domain goes to the end."""

    SHUFFLE = 0  # the order of the prompts
    NOISE = 1  # the noise of a rollout's samples
    EVALUATION = 2  # the noise of held-out prompts
    WINDOW = 3  # which steps of an epoch are stochastic
    CONTROL = 4  # maps made wrong on purpose
    SIZE = 5  # the size of an epoch's images


def seeded(domain: Domain, *numbers: int) -> torch.Generator:
    """A CPU generator for this domain and this tuple of numbers."""
    return torch.Generator().manual_seed(sample_seed(domain, *numbers))


def sample_seed(domain: Domain, *numbers: int) -> int:
    """Mix numbers (each >= 0) into one 63-bit seed with numpy's SeedSequence; close numbers give unrelated seeds."""
    (state,) = np.random.SeedSequence(domain, spawn_key=numbers).generate_state(1, np.uint64)
    return int(state) >> 1
