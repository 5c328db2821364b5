"""What a few seeds can say: where a mean curve crosses a level, and intervals by resampling the seeds."""

from collections.abc import Callable, Sequence

import numpy as np


def samples_to(samples: Sequence[float], accuracy: Sequence[float], level: float) -> float:
    """The samples after which a curve first reaches a level, straight between its points; inf where it never does."""
    for i, value in enumerate(accuracy):
        if value >= level:
            if i == 0:
                return float(samples[0])
            share = (level - accuracy[i - 1]) / (value - accuracy[i - 1])
            return float(samples[i - 1] + share * (samples[i] - samples[i - 1]))
    return float("inf")


def area_under(samples: Sequence[float], accuracy: Sequence[float]) -> float:
    """The mean accuracy over the samples, straight between the points."""
    return float(np.trapezoid(accuracy, samples) / (samples[-1] - samples[0]))


def bootstrap(
    statistic: Callable[..., float], *groups: np.ndarray, num_draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic and its 90% interval, each group's rows (seeds) drawn anew with replacement.

    statistic: takes as many arrays as there are groups. Returns its value on the groups themselves, and the 5th and 95th
    percentile over the draws. A group of one row says nothing of its spread: the interval is then (nan, nan).
    Raises ValueError for an empty group.
    """
    if not all(len(group) for group in groups):
        raise ValueError("a bootstrap needs at least one row in each group")
    value = statistic(*groups)
    if min(len(group) for group in groups) < 2:
        return value, float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(*(group[rng.integers(len(group), size=len(group))] for group in groups)) for _ in range(num_draws)
    ]
    # of two neighbours one may be infinite: no interpolation
    low, high = np.percentile(drawn, (5, 95), method="nearest")
    return value, float(low), float(high)
