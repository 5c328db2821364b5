"""Turns latents into the tokens that a transformer reads, and back."""

import torch
from torch import Tensor


def patchify(latents: Tensor, patch_size: int) -> Tensor:
    """Latents (B, C, h, w) as tokens (B, N, C * patch_size ** 2), row-major; within a token channels come first."""
    batch, channels, height, width = latents.shape
    rows, columns = height // patch_size, width // patch_size
    patches = latents.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


def unpatchify(tokens: Tensor, token_grid: tuple[int, int], patch_size: int) -> Tensor:
    """The inverse of `patchify`; token_grid: (rows, columns)."""
    rows, columns = token_grid
    patches = tokens.reshape(len(tokens), rows, columns, -1, patch_size, patch_size)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, rows * patch_size, columns * patch_size)


def places(*lengths: int, device: torch.device) -> Tensor:
    """The coordinates (N, len(lengths)) of every cell of a grid, row-major. A rotary embedding reads them."""
    return torch.cartesian_prod(*(torch.arange(length, device=device) for length in lengths))
