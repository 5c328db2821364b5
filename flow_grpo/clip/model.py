"""A CLIP model as our scorers use it: it embeds each prompt once, and several maps share one pass."""

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..score import mean_where_invalid
from .parts import ClipParts, Tower
from .preprocess import ClipPreprocess
from .trace import Contributions, Differentiated, Request, Trace

logger = logging.getLogger(__name__)

# From Flow-GRPO: reward = logit / LOGIT_DIVISOR. OpenAI's logit is 100 * cosine, so a divisor of 100 gives the cosine.
LOGIT_DIVISOR = 30.0
NUM_CACHED_PROMPTS = 4096

# In fp16 the gradient with respect to an activation may underflow: we multiply by this before, and divide by it after.
_FP16_GRADIENT_SCALE = 2.0**8


class ClipModel:
    """Scores and traces batches of one prompt per image. Safe in threads; weights must not change while it is in use."""

    def __init__(self, parts: ClipParts):
        self._parts = parts
        self.source: object = None  # the objects that it was made from, if they must live as long
        self._lock = threading.Lock()
        self._texts: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    def resizing(self, resize: str) -> "ClipModel":
        """The same model, with its text cache and its lock, behind another resize filter. Returns itself if it has that filter."""
        if resize == self.preprocess.resize:
            return self
        # torchvision's CenterCrop goes with its Resize
        preprocess = replace(self.preprocess, resize=resize, rounded_offset=resize == "bilinear")
        other = ClipModel(replace(self._parts, preprocess=preprocess))
        other._lock, other._texts = self._lock, self._texts
        other.source = self  # keeps it alive, so that another scorer finds it loaded
        return other

    @property
    def tower(self) -> Tower:
        return self._parts.tower

    @property
    def preprocess(self) -> ClipPreprocess:
        return self._parts.preprocess

    @property
    def logit_scale(self) -> float:
        return self._parts.logit_scale

    def embed_texts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B, E) fp32 and truncated (B,) bool, both on the model's device. Each prompt is embedded once."""
        # one thread at a time: tokenizers of the tokenizers library raise when two threads set their truncation
        with self._lock, outside_inference(), torch.no_grad():
            found = {prompt: self._texts[prompt] for prompt in prompts if prompt in self._texts}
            for prompt in dict.fromkeys(prompts):
                if prompt not in found:
                    # Alone: the encoder's last bit depends on the batch, and a resumed run would have other batches.
                    embeds, truncated = self._parts.embed_texts([prompt])
                    found[prompt] = F.normalize(embeds.float(), dim=1)[0], truncated.to(embeds.device)[0]
            for prompt in found:  # the most recently used prompt stands last
                self._texts[prompt] = found[prompt]
                self._texts.move_to_end(prompt)
            while len(self._texts) > NUM_CACHED_PROMPTS:
                self._texts.popitem(last=False)
        embeds, truncated = zip(*(found[prompt] for prompt in prompts))
        return torch.stack(embeds), torch.stack(truncated)

    def trace(self, images: Tensor, prompts: Sequence[str], request: Request = Request()) -> Trace:  # noqa: B008 frozen
        """Run one pass on images (B, 3, H, W), float in [0, 1], on any device, with their prompts.

        Works under an outer no_grad, inference_mode or autocast, and leaves no .grad, hook or graph behind. Samples are
        independent, so the gradient of the batch's sum is each image's own gradient. Raises ValueError as the tower's `check`.
        """
        self.tower.check(request)
        device = self._parts.device
        with outside_inference(), torch.autocast(device.type, enabled=False):
            texts, truncated = self.embed_texts(prompts)
            images = images.detach().to(device, torch.float32)
            images = images.clone() if images.is_inference() else images
            with torch.set_grad_enabled(request.pixels):
                pixels = self.preprocess(images.requires_grad_(request.pixels))
            record = self.tower.run(pixels, texts, request)
            with torch.set_grad_enabled(record.embeds.requires_grad):
                norms = record.embeds.norm(dim=1)
                logits = self.logit_scale * (record.embeds * texts).sum(dim=1) / norms  # (B,)
            return self._traced(images, logits, norms.detach(), truncated, record, request)

    def _traced(self, images, logits, norms, truncated, record, request) -> Trace:
        watched = [*record.features.values(), *record.attention.values(), *([images] if request.pixels else [])]
        gradients = iter(self._gradients(logits, watched))
        to_grid = self.tower.to_grid
        features = {
            block: Differentiated(to_grid(value.detach()), to_grid(next(gradients)))
            for block, value in record.features.items()
        }
        attention = {
            block: Differentiated(value.detach(), next(gradients)) for block, value in record.attention.items()
        }
        size, preprocess = tuple(images.shape[2:]), self.preprocess
        return Trace(
            logits=logits.detach(),
            truncated=truncated,
            grid=self.tower.grid,
            size=size,
            window=preprocess.window(size),
            to_window=lambda cells: preprocess.to_window(cells, size),
            pixels=Differentiated(images.detach(), next(gradients)) if request.pixels else None,
            features=features,
            attention=attention,
            mean_attention=record.mean_attention,
            contributions=_scaled(record.contributions, self.logit_scale / norms),
        )

    def _gradients(self, logits: Tensor, watched: list[Tensor]) -> list[Tensor]:
        """The gradient of each image's logit with respect to each of the tensors, fp32."""
        if not watched:
            return []
        scale = _FP16_GRADIENT_SCALE if self.tower.dtype == torch.float16 else 1.0
        with torch.enable_grad():
            total = logits.sum() * scale
        return [gradient.float() / scale for gradient in torch.autograd.grad(total, watched)]


def check_divisor(logit_divisor: float) -> None:
    if not 0 < logit_divisor < math.inf:
        raise ValueError(f"logit_divisor must be positive, got {logit_divisor}; 30 is Flow-GRPO's, 1 gives logits")


def finite_rewards(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards (B,), with a placeholder where one is not finite, and valid (B,), False there."""
    valid = rewards.isfinite()
    if not valid.all():
        logger.warning(
            "%d of %d CLIP scores are not finite; bfloat16 or float32 helps", (~valid).sum().item(), len(valid)
        )
    return mean_where_invalid(rewards, valid), valid


def _scaled(contributions: Contributions | None, scale: Tensor) -> Contributions | None:
    if contributions is None:
        return None
    return Contributions(
        tokens=contributions.tokens * scale[:, None, None],
        mlps=contributions.mlps * scale[:, None],
        constant=contributions.constant * scale,
    )


def outside_inference():
    # tensors made under inference_mode cannot enter a graph later
    return torch.inference_mode(False)
