"""`clip_decomposition`: what each patch adds to the score, through the attention of every block."""

from typing import Any

import torch
from torch import Tensor

from .clip.load import DEFAULT_MODEL, load_clip
from .clip.map_scorer import ClipMapScorer, spread
from .clip.model import LOGIT_DIVISOR
from .clip.trace import Request, Trace
from .option_types import checked_options


class ClipDecompositionScorer(ClipMapScorer):
    """Direct logit attribution: the score is a sum over blocks, tokens, MLPs and biases; the map shows the patches' terms.

    The sum is exact, needs no gradient, and is linear in the text. ViT only. A term may be negative, and every term contains
    a part that is the same for all prompts. So zero has no meaning, and the map is stretched from the lowest patch to the
    highest. Source: Gandelsman et al., arXiv:2310.05916. Contributions in clip/trace describes the terms.
    model, tokenizer, device and dtype are load_clip's. ClipMapScorer describes the rest, and what the Score holds.
    """

    request = Request(contributions=True)

    @checked_options
    def __init__(
        self,
        model: Any = DEFAULT_MODEL,
        tokenizer: Any = None,
        device: str = "cpu",
        dtype: str | torch.dtype | None = None,
        logit_divisor: float = LOGIT_DIVISOR,
    ):
        super().__init__(load_clip(model, tokenizer, device, dtype), logit_divisor)

    def window_map(self, trace: Trace) -> Tensor:
        patches = trace.contributions.tokens.sum(dim=1)[:, 1:]  # (B, N)
        return spread(patches.unflatten(1, trace.grid), trace)
