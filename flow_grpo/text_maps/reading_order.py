"""The order in which the lines of an image are read, and which lines continue a word of an earlier line."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .engine import TextLine

# The largest gap between pieces of one word, in heights of their letters. Stacked and spaced-out letters stand up to two
# heights apart.
_NEAR = 2.5
# The largest factor between the heights of letters in one word. "l" and "a" differ by 1.5, and boxes are loose.
_SAME_SIZE = 2.0
# A line continues one of the nearest lines. No more than about 40 that lie apart are near; only boxes on top of one another are.
_NEAREST = 64
_BLOCK = 64  # lines that are compared with all others at once


class Step(NamedTuple):
    """A line continues a word of line number `line`. gap: distance between the two boxes, in heights of their letters."""

    line: int
    gap: float


def reading_order(lines: Sequence[TextLine]) -> list[int]:
    """Indices of the lines from top to bottom, and from left to right in a row. The given order does not matter.

    Rows run along the mean direction of the lines, so that a row of a tilted picture stays together. A line whose
    middle is less than half a line's height below a row's is part of that row. Right-to-left scripts are
    not treated differently.
    """
    if not lines:
        return []
    corners = _in_rows(lines)
    centres = corners.mean(axis=1)
    across, down = centres[:, 0], centres[:, 1]
    heights = (_edge_lengths(corners, 0, 3) + _edge_lengths(corners, 1, 2)) / 2

    def place(i: int):
        return across[i], down[i], lines[i].text, lines[i].confidence

    rows: list[list[int]] = []
    for i in sorted(range(len(lines)), key=lambda i: (down[i], *place(i))):
        first = rows[-1][0] if rows else i
        if rows and down[i] - down[first] < 0.5 * min(heights[i], heights[first]):
            rows[-1].append(i)
        else:
            rows.append([i])
    return [i for row in rows for i in sorted(row, key=place)]


def steps_within_words(lines: Sequence[TextLine]) -> list[list[Step]]:
    """For each line, the earlier lines whose last word it may continue. lines: in reading order.

    The two lines are near one another, their letters have about the same size, and no third line stands between them.
    Example: in the stacked letters of HOTEL, each letter continues from the one above it, and from no other.
    """
    if not lines:
        return []
    corners = _in_rows(lines)  # (L, 4, 2)
    low, high, centres = corners.min(axis=1), corners.max(axis=1), corners.mean(axis=1)  # (L, 2)
    heights = (_edge_lengths(corners, 0, 3) + _edge_lengths(corners, 1, 2)) / 2
    # the box of a lone letter may be turned: an upright "I" counts as a line that runs down
    lone = np.array([len(line.text.strip()) == 1 for line in lines])
    heights = np.maximum(np.where(lone, (high - low).max(axis=1), heights), 1e-6)
    steps: list[list[Step]] = []
    for first in range(0, len(lines), _BLOCK):
        block = slice(first, first + _BLOCK)
        # between the boxes, along and across: (b, L, 2)
        apart = np.maximum(np.maximum(low - high[block, None], low[block, None] - high), 0)
        smaller = np.minimum(heights, heights[block, None])  # (b, L)
        gaps = np.hypot(apart[..., 0], apart[..., 1]) / smaller
        near = (gaps <= _NEAR) & (np.maximum(heights, heights[block, None]) / smaller <= _SAME_SIZE)
        for i in range(first, first + len(near)):
            others = near[i - first].nonzero()[0]
            earlier = others[: others.searchsorted(i)]
            if len(earlier) > _NEAREST:
                earlier = np.sort(earlier[gaps[i - first, earlier].argsort(kind="stable")[:_NEAREST]])
            earlier = earlier[~_parted(centres, heights, earlier, i, others)]
            steps.append([Step(*step) for step in zip(earlier.tolist(), gaps[i - first, earlier].tolist())])
    return steps


def _in_rows(lines: Sequence[TextLine]) -> np.ndarray:
    """The corners (L, 4, 2) of the lines, turned so that x runs along the rows and y down across them."""
    quads = np.stack([line.quad for line in lines]).astype(np.float64)
    edges = (quads[:, 1] - quads[:, 0]) + (quads[:, 2] - quads[:, 3])  # (L, 2), twice the direction of writing
    along, length = edges.sum(axis=0), np.linalg.norm(edges, axis=1).sum()
    # lines that run in many directions have no common direction
    along = along / np.linalg.norm(along) if np.linalg.norm(along) > 0.5 * length else np.array([1.0, 0.0])
    return quads @ np.array([along, [-along[1], along[0]]]).T


def _edge_lengths(corners: np.ndarray, one: int, other: int) -> np.ndarray:
    return np.linalg.norm(corners[:, one] - corners[:, other], axis=1)


def _parted(centres: np.ndarray, heights: np.ndarray, lines: np.ndarray, i: int, others: np.ndarray) -> np.ndarray:
    """Whether the middle of another line stands on the way from each of these lines to line i. Returns a bool per line."""
    others = others[others != i]  # and no line stands on its own way: its share is 0
    along, down = (centres[i] - centres[lines]).T[..., None]  # (J, 1), the ways
    lengths = np.hypot(along, down)
    others_along, others_down = (centres[others] - centres[lines, None]).T.swapaxes(1, 2)  # (J, M)
    shares = (others_along * along + others_down * down) / np.maximum(lengths**2, 1e-6)
    asides = np.abs(others_along * down - others_down * along) / np.maximum(lengths, 1e-6)
    return ((shares > 0.1) & (shares < 0.9) & (asides < heights[others] / 2)).any(axis=1)
