"""`clip_attention`: what the class token attends to, in the last block or rolled out over all of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .clip.load import DEFAULT_MODEL, load_clip
from .clip.map_scorer import ClipMapScorer, spread
from .clip.model import LOGIT_DIVISOR
from .clip.trace import Request, Trace
from .option_types import checked_options


def gradient_weighted(attention: Tensor, gradient: Tensor) -> Tensor:
    """Mean over heads of relu(attention * gradient): (B, heads, Q, T) -> (B, Q, T).

    Chefer et al., arXiv:2012.09838 and arXiv:2103.15679 (there for CLIP), equation 5 of the latter.
    """
    return (attention * gradient).relu().mean(dim=1)


def rolled_out(blocks: Sequence[Tensor], residual: float, weight: float) -> Tensor:
    """Attention rollout: how much the class token takes from each of the T tokens, through all blocks. Returns (B, T).

    It is the class token's row (row 0) of this product, where A_l is the attention of block l:

        (residual * I + weight * A_L) ... (residual * I + weight * A_2) (residual * I + weight * A_1)

    blocks: A_1 to A_L, (B, Q, T) each. Only the class token's row of the last one is read. Each step multiplies one row
    with one matrix; two matrices are never multiplied.
    """
    row = torch.zeros_like(blocks[-1][:, 0])
    row[:, 0] = 1
    for attention in reversed(blocks):
        passed = row[:, None, : attention.shape[1]] @ attention  # (B, 1, T)
        row = residual * row + weight * passed[:, 0]
    return row


class ClipAttentionScorer(ClipMapScorer):
    """The class token's attention to the patches, averaged over heads. ViT only.

    rollout: follow the attention through all blocks, instead of the last block alone.
    gradient_weighted: before the average, multiply each head's attention by the score's gradient with respect to it, and
        set negative products to 0. Without this the map does not depend on the prompt: CLIP's image tower does not see the
        text.

    | rollout | gradient_weighted | the map |
    |---|---|---|
    | no | yes | the default: Chefer et al.'s rule for one block |
    | yes | yes | their rule for all blocks, product of I + A (arXiv:2103.15679, equation 6); twice the score's time |
    | no | no | attention |
    | yes | no | attention rollout, product of (I + A) / 2 (Abnar & Zuidema, arXiv:2005.00928) |

    model, tokenizer, device and dtype are load_clip's. ClipMapScorer describes the rest, and what the Score holds.
    """

    @checked_options
    def __init__(
        self,
        model: Any = DEFAULT_MODEL,
        tokenizer: Any = None,
        device: str = "cpu",
        dtype: str | torch.dtype | None = None,
        logit_divisor: float = LOGIT_DIVISOR,
        rollout: bool = False,
        gradient_weighted: bool = True,
    ):
        clip = load_clip(model, tokenizer, device, dtype)
        last = clip.tower.num_blocks - 1
        self._blocks = tuple(range(last + 1)) if rollout else (last,)
        self._weighted = gradient_weighted
        kept = "attention" if gradient_weighted else "mean_attention"
        self.request = Request(**{kept: frozenset(self._blocks)})
        super().__init__(clip, logit_divisor)

    def window_map(self, trace: Trace) -> Tensor:
        if self._weighted:
            blocks = [gradient_weighted(*trace.attention[block]) for block in self._blocks]
        else:
            blocks = [trace.mean_attention[block] for block in self._blocks]
        if len(blocks) == 1:
            row = blocks[0][:, 0]
        else:
            row = rolled_out(blocks, *((1.0, 1.0) if self._weighted else (0.5, 0.5)))  # (B, 1 + N)
        return spread(row[:, 1:].unflatten(1, trace.grid), trace)
