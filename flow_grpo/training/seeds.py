"""Seeds that follow from numbers alone, so that a run can draw again what it drew."""

import torch


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
