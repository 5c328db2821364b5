"""What travels between the stages of an epoch: scores with their maps on tokens, and the credit made of them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TokenMap:
    """One reward's maps.

    values: (B, N). kind: "reward" or "importance". valid: (B,) bool. neutral: what a reward map holds where it has nothing
    to say.
    """

    values: Tensor
    kind: str
    valid: Tensor
    neutral: float = 0.5


@dataclass(frozen=True)
class Scored:
    """Samples with their scores; nothing carries a gradient.

    rewards: (B,), the weighted sum. valid: (B,) bool, False where an image could not be scored and its numbers mean
    nothing. group_ids: (B,), siblings share one. maps: by reward name, where it has one.
    details: {name: (B,)}, each reward by itself, what its scorer measured on the way, and the images' signals.
    """

    rewards: Tensor
    valid: Tensor
    group_ids: Tensor
    maps: dict[str, TokenMap]
    details: dict[str, Tensor]


@dataclass(frozen=True)
class Credit:
    """What the update needs of the scores.

    advantages: (S, B, N), (S, B, 1) where no map counts. region: (B, N) in [0, 1], where the maps say something, or
    None without maps. kl_weights: (B, N) of mean 1, or None: all alike.
    """

    advantages: Tensor
    region: Tensor | None
    kl_weights: Tensor | None

    def __getitem__(self, rows: slice | Tensor) -> "Credit":
        """The credit of some of the samples."""
        region, weights = (None if part is None else part[rows] for part in (self.region, self.kl_weights))
        return Credit(self.advantages[:, rows], region, weights)
