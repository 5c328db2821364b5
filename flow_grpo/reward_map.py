"""What every map needs on its way from a scorer to the tokens: normalise, blur, resize, pool. Pure torch, fp32.

All maps are (B, H, W), row 0 at the top, and every function keeps their device.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def normalise(reward_map: Tensor, quantiles: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Stretch each map of a batch so that its quantiles become 0 and 1, clamped to [0, 1].

    reward_map: (B, H, W), any finite values.
    quantiles: (0, 1) is min-max; (0.01, 0.99) ignores a few outlying pixels.
    A constant map becomes 0.5 everywhere, since it does not say where. "Constant" is relative to the map's own magnitude:
    the gradients of a score by its pixels may all lie under 1e-6.
    Do not use it on a map of kind "reward". Such a map has a fixed scale, and stretching would move its neutral value.
    Raises ValueError where the quantiles are not 0 <= low < high <= 1.
    """
    low, high = checked_quantiles(quantiles)
    values = reward_map.float().flatten(1)  # (B, H * W)
    if (low, high) == (0, 1):
        floor, ceiling = values.aminmax(dim=1, keepdim=True)  # (B, 1) each; 15 times as fast as kthvalue
    else:
        last = values.shape[1] - 1
        # kthvalue, not torch.quantile: that one refuses 16 M values, a batch of 64 maps of 512 px
        floor = values.kthvalue(1 + round(low * last), dim=1, keepdim=True).values
        ceiling = values.kthvalue(1 + round(high * last), dim=1, keepdim=True).values
    span = ceiling - floor
    constant = span <= torch.maximum(floor.abs(), ceiling.abs()) * 1e-6  # a few fp32 ulps
    stretched = ((values - floor) / span.masked_fill(constant, 1.0)).clamp(0, 1)
    return stretched.masked_fill(constant, 0.5).view_as(reward_map)


def checked_quantiles(quantiles: tuple[float, float]) -> tuple[float, float]:
    """The quantiles. Raises ValueError where they are not 0 <= low < high <= 1."""
    low, high = quantiles
    if not 0 <= low < high <= 1:
        raise ValueError(f"quantiles must satisfy 0 <= low < high <= 1, got {quantiles}; (0, 1) is min-max")
    return low, high


def blur_radius(sigma: float) -> int:
    """How many pixels far `gaussian_blur` of this sigma reaches: three sigma, rounded up."""
    return math.ceil(3 * sigma)


def gaussian_blur(reward_map: Tensor, sigma: float) -> Tensor:
    """Blur maps (B, H, W) with a Gaussian of `sigma` pixels, as two one-dimensional passes.

    The kernel sums to 1 and the border is replicated: a constant map stays, no value leaves the map's own range, and a
    region that touches the border does not fade there. sigma 0 returns the map unchanged.
    Raises ValueError for a negative sigma.
    """
    if sigma < 0:
        raise ValueError(f"sigma must be 0 or more pixels, got {sigma}")
    maps = reward_map.float()
    radius = blur_radius(sigma)
    if radius == 0:
        return maps
    # fp64: in fp32 a tiny sigma is 0, and 0 / 0 at the centre
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(maps)
    padded = F.pad(maps[:, None], (radius, radius, radius, radius), mode="replicate")
    with torch.autocast(maps.device.type, enabled=False):  # which would convolve in 16 bits
        rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))  # (B, 1, H + 2 radius, W)
        return F.conv2d(rows, kernel.view(1, 1, -1, 1))[:, 0]  # (B, H, W)


def resize(reward_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (B, H, W) to `size` (height, width), bilinear and antialiased: values keep their range."""
    return F.interpolate(reward_map.float()[:, None], size=size, mode="bilinear", antialias=True)[:, 0]


def pool_to_tokens(reward_map: Tensor, token_grid: tuple[int, int]) -> Tensor:
    """Average a pixel map over each latent token.

    reward_map: (B, H, W), row 0 at the top. token_grid: (rows, cols). Returns (B, rows * cols), row-major, fp32.
    Raises ValueError where H or W is not a multiple of the grid.
    """
    batch, height, width = reward_map.shape
    rows, cols = token_grid
    if rows < 1 or cols < 1 or height % rows or width % cols:
        raise ValueError(
            f"reward_map of {height}x{width} pixels must be a multiple of the token grid {rows}x{cols}; "
            "resize the map or take the grid of the latent it belongs to"
        )
    patches = reward_map.float().reshape(batch, rows, height // rows, cols, width // cols)
    return patches.mean(dim=(2, 4)).flatten(1)  # (B, rows * cols)
