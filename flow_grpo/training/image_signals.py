"""What a policy does to its images when it games a reward: watched beside the reward, never part of it.

An OCR reward can be raised by larger text on an emptier scene; then colour entropy falls, and edges move into the text.
"""

import math

import torch

EDGE = 0.1  # step of luminance between neighbouring pixels that counts as an edge, of a range of 1
BINS = 8  # a colour channel


def image_signals(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Measures of images (B, 3, H, W) in [0, 1], each (B,) in [0, 1]; waits for no GPU.

    edge_density: share of pixels whose luminance differs from that of the next to the right or below by more than EDGE.
    colour_entropy: of the histogram over BINS^3 colours, as a share of its largest possible value.
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
