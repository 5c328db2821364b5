"""How well the gradient of a few groups points where the gradient of many groups would.

Let x_ag be the gradient of arm a on group g, and s the reference arm: the scalar advantage, whose gradient is unbiased.
All means are over pairs of different groups (g, h):

    signal_a = mean of x_ag . x_sh          self_a = mean of |x_ag|^2          cross_a = mean of x_ag . x_ah
    |n groups of a|^2 = n self_a + n (n - 1) cross_a
    cos_a(n) = n m signal_a / (|n groups of a| |the m others of s|)

cos_a(n) is the cosine between n groups of arm a and the scalar gradient of the m other groups. No group is on both sides.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP_COUNTS = (1, 4, 8)
NUM_RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True)
class Products:
    """Inner products of one arm's gradients over groups, (G, G) float64: with themselves and with the reference's."""

    own: Tensor
    with_reference: Tensor
    reference: Tensor


def products(gradients: Tensor, reference: Tensor) -> Products:
    """gradients, reference: (G, K)."""
    own, other = gradients.double(), reference.double()
    return Products(own @ own.T, own @ other.T, other @ other.T)


def pair_mean(matrix: Tensor, counts: Tensor) -> Tensor:
    """The mean of (G, G) over pairs of different groups, each as often as it was drawn. counts: (..., G)."""
    counts = counts.double()
    squared = counts.square()
    pairs = ((counts @ matrix) * counts).sum(dim=-1) - (squared * matrix.diagonal()).sum(dim=-1)
    return pairs / (counts.sum(dim=-1).square() - squared.sum(dim=-1))


def self_mean(matrix: Tensor, counts: Tensor) -> Tensor:
    return (counts.double() * matrix.diagonal()).sum(dim=-1) / counts.double().sum(dim=-1)


def squared_length(matrix: Tensor, counts: Tensor, num_groups: int) -> Tensor:
    """|sum of num_groups groups|^2 (...,), as expected."""
    return num_groups * self_mean(matrix, counts) + num_groups * (num_groups - 1) * pair_mean(matrix, counts)


def cosine(arm: Products, counts: Tensor, num_groups: int) -> Tensor:
    """cos_a(num_groups) for groups drawn `counts` (..., G) times. Returns (...,)."""
    others = arm.own.shape[0] - num_groups
    lengths = squared_length(arm.own, counts, num_groups) * squared_length(arm.reference, counts, others)
    signal = pair_mean(arm.with_reference, counts)
    return num_groups * others * signal / lengths.clamp_min(torch.finfo(torch.float64).tiny).sqrt()


def samples_saved(arm: Products, counts: Tensor) -> Tensor:
    """(cos_a / cos_s)^2 at the largest of GROUP_COUNTS: how many more samples the scalar needs for as good a gradient.

    0 where the arm points away from the reference, infinite where the scalar itself does.
    """
    scalar = Products(arm.reference, arm.reference, arm.reference)
    ours, theirs = (cosine(one, counts, GROUP_COUNTS[-1]) for one in (arm, scalar))
    return torch.where(theirs > 0, (ours.relu() / theirs).square(), torch.inf)


def resampled_counts(num_groups: int, seed: int = 0) -> Tensor:
    """Bootstrap: how often each group is drawn, (NUM_RESAMPLES, G)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(num_groups, (NUM_RESAMPLES, num_groups), generator=generator)
    return torch.zeros(NUM_RESAMPLES, num_groups).scatter_add_(1, drawn, torch.ones(NUM_RESAMPLES, num_groups))


def fidelity(gradients: Tensor, reference: Tensor, num_update_groups: int, num_parameters: int) -> dict[str, float]:
    """The figures of one arm; gradients, reference: (G, K), of the arm and of the scalar advantage.

    cos_1, cos_4, cos_8: with the reference. saved, saved_low, saved_high: `samples_saved` and its 95% interval over groups.
    self_consistency: the mean cosine of two of the arm's groups. direction: the cosine with the reference that infinitely
    many groups would have, 1 without bias; a noisy figure. rms: of a parameter's gradient in an update of
    num_update_groups groups.
    """
    arm, once = products(gradients, reference), torch.ones(len(gradients))
    figures = {f"cos_{n}": float(cosine(arm, once, n)) for n in GROUP_COUNTS}
    spread = samples_saved(arm, resampled_counts(len(gradients))).sort().values
    spread = spread[[round(share * (NUM_RESAMPLES - 1)) for share in (0.025, 0.975)]]
    figures |= {"saved": float(samples_saved(arm, once)), "saved_low": float(spread[0]), "saved_high": float(spread[1])}
    own, crossed = self_mean(arm.own, once), pair_mean(arm.own, once)
    figures["self_consistency"] = float(crossed / own)
    lengths = (crossed * pair_mean(arm.reference, once)).clamp_min(0).sqrt()
    figures["direction"] = float(pair_mean(arm.with_reference, once) / lengths) if lengths > 0 else float("nan")
    update = squared_length(arm.own, once, num_update_groups).clamp_min(0).sqrt() / num_update_groups
    figures["rms"] = float(update / num_parameters**0.5)
    return figures
