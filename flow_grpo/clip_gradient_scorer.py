"""`clip_gradient`: the score's gradient with respect to the pixels; a diagnostic baseline."""

import math
from typing import Any

import torch
from torch import Tensor

from .clip.load import DEFAULT_MODEL, load_clip
from .clip.map_scorer import ClipMapScorer, without_gaps
from .clip.model import LOGIT_DIVISOR
from .clip.trace import Request, Trace
from .option_types import checked_options
from .reward_map import checked_quantiles, gaussian_blur, normalise


class ClipGradientScorer(ClipMapScorer):
    """The gradient of the score with respect to each pixel (Simonyan et al., arXiv:1312.6034), or its complement.

        complement=True:   map = 1 - normalise(|gradient|)     high where a change of the pixel would not change the score
        complement=False:  map = normalise(|gradient|)         high where it would

    |gradient| is the norm over the three channels, at the input's own resolution; the gradient passes through the
    preprocessing. The complement is the specification's picture. As credit it is upside down: it gives most of the
    advantage to pixels that the score does not depend on. To train, take complement=False; the trainer warns about training
    with the complement.

    quantiles: (0, 1) is min-max; (0.01, 0.99) ignores outliers.
    blur_sigma: sigma of a Gaussian blur of |gradient|, in pixels; 0 means no blur. A ViT's gradient shows its patch grid; a
        sigma of about a quarter of a patch hides it.
    model, tokenizer, device and dtype are load_clip's. ClipMapScorer describes the rest, and what the Score holds.
    """

    request = Request(pixels=True)

    @checked_options
    def __init__(
        self,
        model: Any = DEFAULT_MODEL,
        tokenizer: Any = None,
        device: str = "cpu",
        dtype: str | torch.dtype | None = None,
        logit_divisor: float = LOGIT_DIVISOR,
        quantiles: tuple[float, float] = (0.0, 1.0),
        blur_sigma: float = 0.0,
        complement: bool = True,
    ):
        self._quantiles = checked_quantiles(quantiles)
        if not 0 <= blur_sigma < math.inf:
            raise ValueError(f"blur_sigma must be 0 (none) or more pixels, got {blur_sigma}")
        super().__init__(load_clip(model, tokenizer, device, dtype), logit_divisor)
        self._blur_sigma = blur_sigma
        self._complement = complement

    @property
    def training_warning(self) -> str | None:
        """What a user who trains with this map should know; the trainer logs it at the start. None if there is nothing."""
        if not self._complement:
            return None
        return (
            "clip_gradient's map is 1 - |gradient|, which is high where the score does NOT hang: as credit it is upside down; "
            'train with reward_options.clip_gradient = {"complement": False}, or another map'
        )

    def window_map(self, trace: Trace) -> Tensor:
        rows, cols = trace.window
        magnitude = trace.pixels.gradient.norm(dim=1)[:, rows, cols]  # (B, h, w)
        blurred = gaussian_blur(without_gaps(magnitude), self._blur_sigma)
        importance = normalise(blurred, self._quantiles)
        return 1 - importance if self._complement else importance
