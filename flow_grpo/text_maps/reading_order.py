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
    for i in range(len(lines)):
        apart = np.maximum(np.maximum(low - high[i], low[i] - high), 0)  # (L, 2), between the boxes, along and across
        gaps = np.hypot(*apart.T) / np.minimum(heights, heights[i])
        sizes = np.maximum(heights, heights[i]) / np.minimum(heights, heights[i])
        near = np.flatnonzero((gaps <= _NEAR) & (sizes <= _SAME_SIZE))
        earlier = near[near < i]
        parted = _parted(centres, heights, earlier, i, near)
        steps.append([Step(j, float(gaps[j])) for j in earlier[~parted].tolist()])
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
    ways = centres[i] - centres[lines]  # (J, 2)
    lengths = np.hypot(*ways.T)[:, None]  # (J, 1)
    to_others = centres[others] - centres[lines, None]  # (J, M, 2)
    shares = (to_others * ways[:, None]).sum(axis=2) / np.maximum(lengths**2, 1e-6)
    asides = to_others[..., 0] * ways[:, None, 1] - to_others[..., 1] * ways[:, None, 0]
    between = (shares > 0.1) & (shares < 0.9) & (np.abs(asides) / np.maximum(lengths, 1e-6) < heights[others] / 2)
    between &= (others != i) & (others != lines[:, None])
    return between.any(axis=1)
