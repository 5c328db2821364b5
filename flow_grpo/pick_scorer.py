"""`pickscore`: which image people would pick for a prompt, by a CLIP trained on their choices; no map."""

import torch

from .clip_scorer import ClipScorer
from .option_types import checked_options

PICKSCORE = "yuvalkirstain/PickScore_v1"
# The model is published without a tokenizer; this is the one that it was trained with.
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
LOGIT_DIVISOR = 26.0  # Flow-GRPO's


class PickScorer(ClipScorer):
    """PickScore's logit, divided by logit_divisor. Kirstain et al., arXiv:2305.01569.

    model, tokenizer: hub ids or local folders of transformers. The other options are ClipScorer's.
    For a map from the same model, use `clip_gradcam` with model=(model, tokenizer).
    """

    @checked_options
    def __init__(
        self,
        model: str = PICKSCORE,
        tokenizer: str = TOKENIZER,
        device: str = "cpu",
        dtype: str | torch.dtype | None = None,
        logit_divisor: float = LOGIT_DIVISOR,
    ):
        try:
            from transformers import AutoTokenizer, CLIPModel
        except ImportError as error:
            raise ImportError('pickscore needs transformers: pip install "flow-grpo-maps[clip]"') from error
        loaded = CLIPModel.from_pretrained(model), AutoTokenizer.from_pretrained(tokenizer)
        super().__init__(loaded, device=device, dtype=dtype, logit_divisor=logit_divisor)
