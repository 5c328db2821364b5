"""`clipscore`: how well an image fits its prompt, by CLIP; no map."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .clip.load import DEFAULT_MODEL, load_clip
from .clip.map_scorer import score_together
from .clip.model import LOGIT_DIVISOR, check_divisor, finite_rewards
from .clip.trace import Request, Trace
from .option_types import checked_options
from .score import Score


class ClipScorer:
    """CLIP's logit, divided by logit_divisor.

        reward = logit_scale * cosine(image, prompt) / logit_divisor

    Source: Hessel et al., arXiv:2104.08718; we leave out its clamp at 0. The default divisor, 30, is Flow-GRPO's.
    resize: "bicubic", as in CLIP's own processor, or "bilinear", as in Flow-GRPO. At 512 px their scores differ by up to
        4.4e-3, which is 5.6% of the reward's spread; their correlation is 0.998.
    model, tokenizer, device and dtype are load_clip's.
    details: "truncated" is 1 where the prompt was longer than the model reads.
    An image whose score is NaN or Inf is not valid.
    """

    request = Request()

    @checked_options
    def __init__(
        self,
        model: Any = DEFAULT_MODEL,
        tokenizer: Any = None,
        device: str = "cpu",
        dtype: str | torch.dtype | None = None,
        logit_divisor: float = LOGIT_DIVISOR,
        resize: str = "bicubic",
    ):
        check_divisor(logit_divisor)
        self.clip = load_clip(model, tokenizer, device, dtype).resizing(resize)
        self._logit_divisor = logit_divisor

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Score:
        """Score images (B, 3, H, W), float in [0, 1]. Raises ValueError for bad input."""
        return score_together([self], images, prompts, metadata)[0]

    def score(self, trace: Trace, device: torch.device) -> Score:
        """The Score that one pass of the model gives, on the device."""
        rewards, valid = finite_rewards(trace.logits / self._logit_divisor)
        return Score(
            reward=rewards.to(device),
            details={"truncated": trace.truncated.float().to(device)},
            valid=valid.to(device),
        )
