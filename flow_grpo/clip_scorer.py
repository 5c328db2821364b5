"""`clipscore`: how well an image fits its prompt, by CLIP; no map."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .clip.load import DEFAULT_MODEL, load_clip
from .clip.map_scorer import score_together
from .clip.model import LOGIT_DIVISOR, check_divisor, finite_rewards
from .clip.trace import Request, Trace
from .score import Score


class ClipScorer:
    """CLIP's logit over logit_divisor: the cosine of image and prompt times the model's logit scale, divided.

    Hessel et al., arXiv:2104.08718, without its clamp at 0; Flow-GRPO divides by 30, which is the default.
    resize: "bicubic", as CLIP's own processor does it, or "bilinear", Flow-GRPO's. At 512 px their scores differ by up to
        4.4e-3, 5.6% of the reward's spread; their correlation is 0.998.
    For model, tokenizer, device and dtype see load_clip. An image whose score is NaN or Inf is not valid.
    details: "truncated", 1 where the prompt was longer than the model reads.
    """

    request = Request()

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
        """The Score of a pass, on the device."""
        rewards, valid = finite_rewards(trace.logits / self._logit_divisor)
        return Score(
            reward=rewards.to(device),
            details={"truncated": trace.truncated.float().to(device)},
            valid=valid.to(device),
        )
