"""The parts that our scorers need from a CLIP model of any library."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .preprocess import ClipPreprocess
from .trace import Record, Request


class Tower(Protocol):
    """An image tower that answers requests: VitTower or ResNetTower."""

    grid: tuple[int, int]
    num_blocks: int
    dtype: torch.dtype

    def check(self, request: Request) -> None: ...

    def run(self, pixels: Tensor, texts: Tensor, request: Request) -> Record: ...

    def to_grid(self, feature: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class ClipParts:
    """A model of any library taken apart.

    embed_texts: prompts -> embeddings (P, E), any scale, and truncated (P,) bool. It need not be safe in threads.
    logit_scale: the model's factor from cosines to logits.
    """

    tower: Tower
    preprocess: ClipPreprocess
    embed_texts: Callable[[Sequence[str]], tuple[Tensor, Tensor]]
    logit_scale: float
    device: torch.device
