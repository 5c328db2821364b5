"""Finds the signs in an image of the signs world, by the colours that the caption names."""

import re

import numpy as np

from scripts.pretrain.signs_world import COLORS

NEAR = 60  # levels: how far a pixel's colour may lie from the named one, in its largest channel
MIN_ROW, MIN_COLUMN = (
    12,
    6,
)  # pixels of its colour in a row, in a column of a sign: fewer are mixed edges of other things


def sign_boxes(image: np.ndarray, caption: str) -> list[np.ndarray]:
    """A mask (H, W) bool per sign that the caption names, in its order: the box of the sign's colour, letters included.

    image: (H, W, 3) uint8. A mask without a pixel where the image has none of that colour.
    Raises ValueError for a caption without a sign.
    """
    colors = [color for color in re.findall(r"\ba (\w+) sign\b", caption) if color in COLORS]
    if not colors:
        raise ValueError(
            f'no sign of a known colour in {caption!r}; expected e.g. a red ring and a blue sign that says "HUT"'
        )
    return [_box(np.abs(image.astype(int) - COLORS[color]).max(axis=2) < NEAR) for color in colors]


def _box(like: np.ndarray) -> np.ndarray:
    mask = np.zeros_like(like)
    rows = np.flatnonzero(like.sum(axis=1) >= MIN_ROW)
    rows = max(np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1), key=len)  # the longest run
    columns = np.flatnonzero(like[rows].sum(axis=0) >= MIN_COLUMN)
    if len(rows) and len(columns):
        mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return mask
