"""Measures that show when a policy games its reward. They are watched beside the reward, and never part of it.

Larger text on an emptier scene can raise an OCR reward. Colour entropy then falls, and the edges move into the text.
"""

import math

import torch

EDGE = 0.1  # step of luminance between neighbouring pixels that counts as an edge, of a range of 1
BINS = 8  # per colour channel


def image_signals(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The signals of images (B, 3, H, W) in [0, 1]; each is (B,) in [0, 1]. The call does not wait for the GPU.

    edge_density: share of the pixels whose luminance differs by more than EDGE from the pixel to the right or below.
    colour_entropy: entropy of the histogram over BINS^3 colours, divided by its largest possible value.
    """
    images = images.detach().float()
    luminance = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]  # Rec. 601, (B, H, W)
    right = torch.zeros_like(luminance, dtype=torch.bool)
    below = torch.zeros_like(right)
    right[:, :, :-1] = luminance.diff(dim=2).abs() > EDGE
    below[:, :-1] = luminance.diff(dim=1).abs() > EDGE
    levels = (images * BINS).long().clamp_(0, BINS - 1).flatten(2)  # (B, 3, H * W)
    colours = (levels[:, 0] * BINS + levels[:, 1]) * BINS + levels[:, 2]  # (B, H * W)
    counts = images.new_zeros(len(images), BINS**3)
    counts.scatter_add_(1, colours, torch.ones_like(colours, dtype=counts.dtype))
    shares = counts / counts.sum(dim=1, keepdim=True)
    entropy = -torch.xlogy(shares, shares).sum(dim=1)
    largest = math.log(max(2, min(BINS**3, colours.shape[1])))
    return {"edge_density": (right | below).float().mean(dim=(1, 2)), "colour_entropy": entropy / largest}
