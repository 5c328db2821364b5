"""Boxes -> map: each text box is filled with its reward, gets soft edges, and is laid over a background."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..reward_map import blur_radius, gaussian_blur
from .character_strips import Strips

# A wide blur works on cells of several pixels, whose sigma is at least this many cells: the error of a mask stays under 1%.
_COARSE_SIGMA = 8


def blend_boxes(
    quads: Sequence[np.ndarray],
    rewards: Iterable[float | Strips],
    size: tuple[int, int],
    reward_bg: float,
    mask_sigma: float,
) -> Tensor:
    """Lay L boxes with their rewards on a neutral background. Returns (H, W) fp32 for size = (H, W).

        map   = reward_bg + mask * (reward_box - reward_bg)
        mask  = the filled quad, blurred by a Gaussian of sigma
        sigma = mask_sigma * height of the box, in pixels

    The borders between a box's strips are blurred with the same sigma. Where several boxes overlap, reward_box is the mean
    of their rewards, weighted by their masks, and mask is the largest of their masks. So giving a box twice changes nothing,
    and every value lies in the range of the rewards and the background.
    """
    mask, weight, weighted_reward = torch.zeros(3, *size, dtype=torch.float32)
    bounds = [reward_bg]
    for quad, reward in zip(quads, rewards, strict=True):
        bounds += reward.rewards if isinstance(reward, Strips) else [float(reward)]
        sigma = min(mask_sigma * line_height(quad), max(size))  # a larger sigma would look the same
        rows, cols = _window(quad, size, margin=blur_radius(sigma))
        if rows.start >= rows.stop or cols.start >= cols.stop:
            continue  # outside the image
        box_mask = _soften(fill_quad(quad, rows, cols), sigma)
        if isinstance(reward, Strips):
            reward = _soften(_strip_rewards(quad, reward, rows, cols), sigma)
        mask[rows, cols] = torch.maximum(mask[rows, cols], box_mask)
        weight[rows, cols] += box_mask
        weighted_reward[rows, cols] += box_mask * reward
    reward_box = weighted_reward / weight.clamp_min(torch.finfo(torch.float32).tiny)
    # clamp: fp32 rounding of the blend may pass its bounds by an ulp
    low, high = (bound.item() for bound in torch.tensor(bounds, dtype=torch.float32).aminmax())
    return (reward_bg + mask * (reward_box - reward_bg)).clamp(low, high)


def fill_quad(quad: np.ndarray, rows: slice, cols: slice) -> Tensor:
    """1 where the centre of a pixel lies in the quad, 0 elsewhere. Even-odd rule; corners in either direction.

    quad: (4, 2) corners (x, y) in pixels. rows, cols: the window of the image to fill. Returns (num_rows, num_cols) fp32.
    """
    y, x = _centres(rows, cols)
    inside = torch.zeros(len(y), x.shape[1], dtype=torch.bool)
    for (x0, y0), (x1, y1) in zip(quad.tolist(), np.roll(quad, -1, axis=0).tolist(), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside.float()


def text_area(quads: Sequence[np.ndarray], size: tuple[int, int]) -> float:
    """The share of an image's pixels that lie in any of the quads, in [0, 1]."""
    covered = torch.zeros(size, dtype=torch.float32)
    for quad in quads:
        rows, cols = _window(quad, size, margin=0)
        covered[rows, cols] = torch.maximum(covered[rows, cols], fill_quad(quad, rows, cols))
    return covered.mean().item()


def line_height(quad: np.ndarray) -> float:
    """The mean length, in pixels, of the two edges across the line."""
    left, right = (quad[[3, 2]] - quad[[0, 1]]).astype(np.float64)  # in fp32 the squares of a huge box are infinite
    return float(np.linalg.norm(left) + np.linalg.norm(right)) / 2


def _strip_rewards(quad: np.ndarray, strips: Strips, rows: slice, cols: slice) -> Tensor:
    """For each pixel of the window, the reward of the strip at its place along the line, or of the nearest strip."""
    y, x = _centres(rows, cols)
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = quad.tolist()
    # distances from the left and the right edge, negative outside; where both are 0 the share is NaN, and becomes 0
    left = ((x - x0) * (y3 - y0) - (y - y0) * (x3 - x0)) / max(np.hypot(x3 - x0, y3 - y0), 1e-6)
    right = ((x1 - x) * (y2 - y1) - (y1 - y) * (x2 - x1)) / max(np.hypot(x2 - x1, y2 - y1), 1e-6)
    along = (left / (left + right)).nan_to_num(0)  # (num_rows, num_cols)
    strip = torch.bucketize(along, torch.tensor(strips.ends[:-1], dtype=torch.float32))
    return torch.tensor(strips.rewards, dtype=torch.float32)[strip]


def _soften(values: Tensor, sigma: float) -> Tensor:
    """Blur (H, W) with a Gaussian of sigma pixels. A wide blur runs on cells of several pixels, so it costs no more."""
    step = int(sigma // _COARSE_SIGMA)
    if step < 2:
        return gaussian_blur(values[None], sigma)[0]
    height, width = values.shape
    padded = F.pad(values[None], (0, -width % step, 0, -height % step), mode="replicate")
    cells = gaussian_blur(F.avg_pool2d(padded, step), sigma / step)
    return F.interpolate(cells[None], scale_factor=step, mode="bilinear")[0, 0, :height, :width]


def _centres(rows: slice, cols: slice) -> tuple[Tensor, Tensor]:
    """The coordinates of the pixels' centres: y (num_rows, 1) and x (1, num_cols)."""
    y, x = (torch.arange(part.start, part.stop, dtype=torch.float32) + 0.5 for part in (rows, cols))
    return y[:, None], x[None, :]


def _window(quad: np.ndarray, size: tuple[int, int], margin: int) -> tuple[slice, slice]:
    """Rows and columns of the image that a quad and `margin` pixels around it can touch; empty outside the image."""
    height, width = size
    left, top = np.clip(np.floor(quad.min(axis=0)) - margin, 0, (width, height)).astype(int).tolist()
    right, bottom = np.clip(np.ceil(quad.max(axis=0)) + margin, 0, (width, height)).astype(int).tolist()
    return slice(top, bottom), slice(left, right)
