"""What travels between the stages of an epoch: scores with their maps on tokens, and the credit made of them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TokenMap:
    """The maps of one reward, pooled to tokens.

    values: (B, N). kind: "reward" or "importance". valid: (B,) bool.
    neutral: what a reward map holds where it has nothing to say.
    """

    values: Tensor
    kind: str
    valid: Tensor
    neutral: float = 0.5


@dataclass(frozen=True)
class Scored:
    """The scores of B samples. No tensor has a gradient.

    rewards: (B,), the weighted sum.
    valid: (B,) bool. Where it is False, the image could not be scored and its numbers are placeholders.
    group_ids: (B,); siblings share one.
    maps: {reward name: its maps}, for the rewards that have maps.
    details: {name: (B,)}: each reward by itself, what its scorer measured on the way, and the images' signals.
    """

    rewards: Tensor
    valid: Tensor
    group_ids: Tensor
    maps: dict[str, TokenMap]
    details: dict[str, Tensor]


@dataclass(frozen=True)
class Credit:
    """What the update needs of the scores, for S trained steps and B samples.

    advantages: (S, B, N), or (S, B, 1) if no map is used.
    region: (B, N) in [0, 1], high where the maps say something. None without maps.
    kl_weights: (B, N) with mean 1. None weighs all tokens alike.
    """

    advantages: Tensor
    region: Tensor | None
    kl_weights: Tensor | None

    def __getitem__(self, rows: slice | Tensor) -> "Credit":
        """The credit of some of the samples."""
        region, weights = (None if part is None else part[rows] for part in (self.region, self.kl_weights))
        return Credit(self.advantages[:, rows], region, weights)
