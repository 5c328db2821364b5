"""The best chains of lines, for every target at once: lines in reading order, each as a span that follows the one before."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .line_fits import Fit, Targets
from .reading_order import Step

# Breaks ties: fewer lines win, then higher similarity, then larger boxes. It is far below any difference in reward.
TIE = 1e-7


class Link(NamedTuple):
    """A line of a chain, and the span target[start:end] that it stands for."""

    line: int
    start: int
    end: int


class _Lasts(NamedTuple):
    """The best chains that end with one line. lengths: of the line's span, by its end, which is one of `ends`.

    from_line, from_end: for each position where the line may begin, the last line of the chain before it (-1 if there is
    none) and where that ends.
    """

    ends: np.ndarray
    lengths: np.ndarray
    from_line: np.ndarray
    from_end: np.ndarray


class Chains:
    """Takes the lines of an image one after the other, and knows the chain with the largest value so far for each target.

        value of a chain = sum over its lines of (gain - price * size) - price * letters that are left out

    prices: {target: the price of a letter}; the other targets are left alone.

    Worked example. Target "BIG SALE" (n = 7), lines 0 "BIG" and 1 "SAL", confidences 1, price 0.5.
        Line 0 as "big": 3 - 0.5 * 3 = 1.5, which ends at 3.    Line 0 as "bigsale": 3 - 0.5 * 7 = -0.5, which ends at 7.
        Line 1 as "sale" begins at 3: 1.5 + 3 - 0.5 * 4 = 2.5, which ends at 7. It is the best that ends at 7.
    """

    def __init__(self, targets: Targets, prices: Mapping[int, float]):
        self._targets, self._has_words = targets, bool(targets.within_word.any())
        self._with_gaps = [target for target in prices if targets.with_gaps[target]]
        self._gaps = targets.with_gaps[targets.target_of]  # (N,)
        # the positions of all targets from the first priced one to the last; those between them only cost some time
        self._first, self._last = min(prices), max(prices) + 1
        by_target = np.array([prices.get(target, 0.0) for target in range(len(targets.texts))])
        # a single price is one number for every position, which saves a table for each line
        self._only_price = next(iter(prices.values())) if len(prices) == 1 else None
        self._prices = by_target[targets.target_of]  # (N,), as are those below
        self._charges = self._prices * targets.place  # for leaving out every letter before a position
        # the best chain that ends at each position, or before it: its value, its last line, and the end of that
        num = len(targets.place)
        self._best = np.full(num, -np.inf)
        for target in self._with_gaps:
            self._best[targets.breaks[target]] = -self._charges[targets.breaks[target]]
        self._best[targets.origins[:-1]] = 0.0
        self._came_line, self._came_end = np.full(num, -1), np.zeros(num, dtype=int)
        self._positions = np.arange(num)
        self._lasts: dict[int, _Lasts] = {}  # by line
        # by line: the value of the best chain that ends with it, at each position
        self._values: dict[int, np.ndarray] = {}

    def add(self, line: int, fit: Fit, steps: Sequence[Step], skipped: Sequence[int] = ()) -> None:
        """Try a line behind all lines before it. steps: the earlier lines whose last word it may continue.

        skipped: targets that do not use this line.
        """
        rows = slice(fit.bounds[self._first], fit.bounds[self._last])
        ends = fit.ends[rows]
        if not len(ends):
            return
        begin, from_line, from_end = self._begin(steps)
        # the best span for each end
        value = _spans_from(begin, ends, fit.gain.shape[1]) + fit.gain[rows]  # (r, width)
        prices = self._prices[ends, None] if self._only_price is None else self._only_price
        value -= prices * (fit.size if len(fit.size) == 1 else fit.size[rows])
        if len(fit.wrong):  # rather than a right letter that stands for two
            wrong = fit.wrong[(fit.wrong >= rows.start) & (fit.wrong < rows.stop)] - rows.start
            value[wrong, fit.length - 1] += 5 * TIE
        column = value.argmax(axis=1)
        value = value[self._positions[: len(ends)], column] - TIE  # (r,)
        for target in skipped:
            value[fit.bounds[target] - rows.start : fit.bounds[target + 1] - rows.start] = -np.inf
        self._lasts[line] = _Lasts(ends, column + 1, from_line, from_end)
        if fit.followed and self._has_words:
            self._values[line] = np.full(len(self._best), -np.inf)
            self._values[line][ends] = value
        at_break = fit.at_break[rows]
        self._improve(line, ends[at_break], value[at_break])

    def _begin(self, steps: Sequence[Step]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where a line may begin: at a break, or within a word that it continues. Returns the value of what is before."""
        begin, from_line, from_end = self._best, self._came_line, self._came_end
        for step in steps if self._has_words else ():
            if step.line in self._values:
                value = self._values[step.line] - TIE * step.gap
                better = self._targets.within_word & (value > begin)
                if better.any():
                    begin = np.where(better, value, begin)
                    from_line = np.where(better, step.line, from_line)
                    from_end = np.where(better, self._positions, from_end)
        return begin, from_line, from_end

    def _improve(self, line: int, ends: np.ndarray, value: np.ndarray) -> None:
        """Keep the chains that end with this line where they beat what is known. ends: breaks, ascending."""
        value = value + self._charges[ends]
        if len(self._with_gaps) < self._last - self._first:
            closed = ~self._gaps[ends]
            self._keep(line, ends[closed], value[closed] - self._charges[ends[closed]], ends[closed])
        if not self._with_gaps:
            return
        bounds = ends.searchsorted(self._targets.origins).tolist()
        for target in self._with_gaps:
            own = ends[bounds[target] : bounds[target + 1]]
            reached = _rising(value[bounds[target] : bounds[target + 1]])
            if not len(reached):
                continue
            # from each such end, all letters up to any later break may be left out
            breaks = self._targets.breaks[target]
            breaks = breaks[breaks.searchsorted(own[reached[0]]) :]
            source = reached[own[reached].searchsorted(breaks, side="right") - 1]
            self._keep(line, breaks, value[bounds[target] + source] - self._charges[breaks], own[source])

    def _keep(self, line: int, positions: np.ndarray, value: np.ndarray, ends: np.ndarray) -> None:
        better = value > self._best[positions] + TIE / 2
        if better.any():
            positions = positions[better]
            self._best[positions] = value[better]
            # lines that were added before still need what they came from
            self._came_line, self._came_end = self._came_line.copy(), self._came_end.copy()
            self._came_line[positions], self._came_end[positions] = line, ends[better]

    def best(self, target: int) -> list[Link]:
        """The links of a target's best chain, in order; empty if there is none."""
        origin, chain = self._targets.origins[target], []
        end = self._targets.origins[target + 1] - 1
        line, end = int(self._came_line[end]), int(self._came_end[end])
        while line >= 0:
            last = self._lasts[line]
            start = end - int(last.lengths[np.searchsorted(last.ends, end)])
            chain.insert(0, Link(line, start - origin, end - origin))
            line, end = int(last.from_line[start]), int(last.from_end[start])
        return chain


def _spans_from(begin: np.ndarray, ends: np.ndarray, width: int) -> np.ndarray:
    """[i, k - 1]: begin[ends[i] - k], the value of where a span of k letters would begin; -inf before the first position."""
    padded = np.concatenate([np.full(width, -np.inf), begin])
    step = padded.itemsize
    spans = np.ndarray((len(begin), width), buffer=padded, offset=(width - 1) * step, strides=(step, -step))
    dense = ends[-1] - ends[0] + 1 == len(ends)
    return spans[ends[0] : ends[-1] + 1] if dense else spans[ends]


def _rising(value: np.ndarray) -> np.ndarray:
    """Which chains are worth going on from: each better than all before it, with the charge for what it leaves out."""
    before = np.maximum.accumulate(np.concatenate([[-np.inf], value]))[:-1]
    rising, reached, best = (value > before).nonzero()[0], [], -np.inf
    for i, high in zip(rising.tolist(), value[rising].tolist()):
        if high > best + TIE / 2:
            best = high
            reached.append(i)
    return np.array(reached, dtype=int)
