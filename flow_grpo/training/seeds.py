"""Seeds that follow from numbers alone, so that a run can draw again what it drew.

Each use has a domain of its own: the evaluation's noise is that of no rollout, whatever the numbers.
"""

from enum import IntEnum

import numpy as np
import torch


class Domain(IntEnum):
    """What a seed is for. The numbers are part of every seed: a new domain goes to the end."""

    SHUFFLE = 0  # of the prompts
    NOISE = 1  # of a rollout's samples
    EVALUATION = 2  # noise of held-out prompts
    WINDOW = 3  # of stochastic steps
    CONTROL = 4  # maps made wrong on purpose


def seeded(domain: Domain, *numbers: int) -> torch.Generator:
    """A CPU generator for this domain and this tuple of numbers."""
    return torch.Generator().manual_seed(sample_seed(domain, *numbers))


def sample_seed(domain: Domain, *numbers: int) -> int:
    """Mix numbers (0 or more) into one 63-bit seed; neighbouring numbers give unrelated seeds (numpy's SeedSequence)."""
    (state,) = np.random.SeedSequence(domain, spawn_key=numbers).generate_state(1, np.uint64)
    return int(state) >> 1
