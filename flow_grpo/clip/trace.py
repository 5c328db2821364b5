"""What a map can request from one pass through an image tower, and what it gets. Several maps share one pass."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Request:
    """What a pass must keep. Join requests with |.

    pixels: the score's gradient with respect to the images.
    features: blocks (ResNet: stages) whose feature map and its gradient are kept.
    attention: blocks whose attention and its gradient are kept, head by head.
    mean_attention: blocks whose attention is kept without a gradient, averaged over heads.
    contributions: each token's additive share of the score, per block.
    """

    pixels: bool = False
    features: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()
    mean_attention: frozenset[int] = frozenset()
    contributions: bool = False

    def __or__(self, other: "Request") -> "Request":
        return Request(*(getattr(self, name) | getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def first_block(self) -> float:
        """The first block that must be recorded for differentiation. The blocks before it run without a graph."""
        return 0 if self.pixels else min(self.features | self.attention, default=float("inf"))


class Differentiated(NamedTuple):
    """A tensor of the pass, and the score's gradient with respect to it, both detached."""

    value: Tensor
    gradient: Tensor


@dataclass
class Contributions:
    """The terms of a sum that is the score, except for rounding. fp32, in units of the logit.

    tokens: (B, L, 1 + N) what the attention of each of L blocks adds from the class token and from the N patches.
    mlps: (B, L) what each block's MLP adds. constant: (B,) the biases and the class token's own embedding.
    """

    tokens: Tensor
    mlps: Tensor
    constant: Tensor

    def total(self) -> Tensor:
        return self.tokens.sum(dim=(1, 2)) + self.mlps.sum(dim=1) + self.constant  # (B,)


@dataclass
class Record:
    """What a tower returns: what was requested, and the image embeddings (B, E) fp32. All is still part of the graph."""

    embeds: Tensor | None = None
    features: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)
    mean_attention: dict[int, Tensor] = field(default_factory=dict)
    contributions: Contributions | None = None


@dataclass(frozen=True)
class Trace:
    """The result of a pass on B images, each with one prompt. Nothing in it carries a graph.

    logits: (B,) fp32, cosine times the model's own logit scale. truncated: (B,) bool, the prompt was too long.
    pixels: the images (B, 3, H, W) as fp32.
    features: {block: (B, rows, cols, C)}. attention: {block: (B, heads, Q, 1 + N)}, mean_attention: {block: (B, Q, 1 + N)};
        token 0 is the class token, the patches follow row by row. Q is 1 in the last block, where only the class
        token's row is ever read, and 1 + N in the others.
    grid: (rows, cols) of the patches. size: (H, W).
    to_window: spreads maps over the grid to the pixels that survived the crop. window: these pixels' rows and columns.
    """

    logits: Tensor
    truncated: Tensor
    grid: tuple[int, int]
    size: tuple[int, int]
    window: tuple[slice, slice]
    to_window: Callable[[Tensor], Tensor]
    pixels: Differentiated | None
    features: dict[int, Differentiated]
    attention: dict[int, Differentiated]
    mean_attention: dict[int, Tensor]
    contributions: Contributions | None
