"""Pictures of maps: an image with its map laid over it, and sheets of many. numpy and Pillow alone."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Blue is bad or unimportant, white neutral, red good or important.
_LOW, _MIDDLE, _HIGH = np.array([[40, 80, 200], [255, 255, 255], [200, 40, 40]], dtype=np.float32)


def color_map(reward_map: np.ndarray) -> np.ndarray:
    """A map (H, W) in [0, 1] as (H, W, 3) uint8: blue at 0, white at 0.5, red at 1."""
    values = np.clip(reward_map, 0, 1)[..., None].astype(np.float32)
    low, high = _LOW + 2 * values * (_MIDDLE - _LOW), _MIDDLE + (2 * values - 1) * (_HIGH - _MIDDLE)
    return np.where(values < 0.5, low, high).round().astype(np.uint8)


def overlay(image: np.ndarray, reward_map: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """The map's colours over the greyed image (H, W, 3) uint8; map (H, W) in [0, 1]."""
    grey = image.mean(axis=2, keepdims=True)
    return (opacity * color_map(reward_map) + (1 - opacity) * grey).round().astype(np.uint8)


def sheet(tiles: Sequence[np.ndarray], labels: Sequence[str], columns: int, tile_size: int = 128) -> Image.Image:
    """Tiles (H, W, 3) uint8 in rows, each with its label below; tile_size in pixels is their height on the sheet."""
    font = ImageFont.load_default(size=12)
    width, height = tile_size * tiles[0].shape[1] // tiles[0].shape[0] + 4, tile_size + 20
    canvas = Image.new("RGB", (width * columns, height * -(-len(tiles) // columns)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        x, y = index % columns * width, index // columns * height
        resample = Image.Resampling.NEAREST if tile.shape[0] < tile_size else Image.Resampling.LANCZOS
        canvas.paste(Image.fromarray(tile).resize((width - 4, tile_size), resample), (x + 2, y + 2))
        draw.text((x + 3, y + tile_size + 3), label, fill="black", font=font)
    return canvas
