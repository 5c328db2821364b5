"""`jpeg_compressibility`: how few bytes an image takes as a JPEG; the reward that every trainer is tried on first."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .score import Score, check_images, to_uint8

QUALITY = 95
# A reward of -1 is a file of 500 kB (1 kB is 1000 bytes), as in DDPO and Flow-GRPO.
KILOBYTES_PER_REWARD = 500.0


def jpeg_kilobytes(image: np.ndarray) -> float:
    """The size of an image (H, W, 3), uint8 RGB, as a JPEG of quality 95, in units of 1000 bytes."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=QUALITY)
    return file.tell() / 1000


class JpegScorer:
    """A smaller JPEG gets a higher reward. It gives no map, and does not read the prompts.

        reward = -(size of the image's JPEG in kB) / 500

    Source: DDPO, arXiv:2305.13301; Flow-GRPO's `jpeg_compressibility`. details: "kilobytes".
    """

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Score:
        """Score images (B, 3, H, W), float in [0, 1]. Raises ValueError for bad input."""
        check_images(images, prompts, metadata)
        sizes = [jpeg_kilobytes(image) for image in to_uint8(images)]
        kilobytes = torch.tensor(sizes, dtype=torch.float32, device=images.device)  # (B,)
        return Score(reward=-kilobytes / KILOBYTES_PER_REWARD, details={"kilobytes": kilobytes})
