"""`clip_gradcam`: Grad-CAM on a CLIP image tower."""

from typing import Any

import torch
from torch import Tensor

from .clip.load import DEFAULT_MODEL, load_clip
from .clip.map_scorer import ClipMapScorer, spread
from .clip.model import LOGIT_DIVISOR
from .clip.trace import Request, Trace
from .option_types import checked_options


def gradcam(features: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM: the features, each channel weighted by its mean gradient. Selvaraju et al., arXiv:1610.02391.

        weight[c] = mean over places of gradients[..., c]
        map       = relu(sum over c of features[..., c] * weight[c])

    features, gradients: (B, rows, cols, C). Returns (B, rows, cols).
    """
    weights = gradients.mean(dim=(1, 2), keepdim=True)  # (B, 1, 1, C)
    return (features * weights).sum(dim=3).relu()


class ClipGradcamScorer(ClipMapScorer):
    """Grad-CAM on the patch tokens that a block reads: its layer_norm1 output, or a ResNet's stage.

    block: counted from 0; the default -1 is the last block, or a ResNet's layer4. There is no option for the last block's
    output: the score reads only its class token, so the gradient at its patches is exactly zero.
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
        block: int = -1,
    ):
        clip = load_clip(model, tokenizer, device, dtype)
        num_blocks = clip.tower.num_blocks
        self._block = block + num_blocks if -num_blocks <= block < 0 else block
        self.request = Request(features=frozenset({self._block}))
        super().__init__(clip, logit_divisor)

    def window_map(self, trace: Trace) -> Tensor:
        return spread(gradcam(*trace.features[self._block]), trace)
