"""Find the lines that show each target best. In reading order, each stands for a span; the spans make up the whole target.

A span begins and ends where a line may break. It may also end within a word if the next line continues that word
(`steps_within_words`). So stacked letters form one word, and so do the halves of a word that is broken at a hyphen.

Worked example. Target "BIG SALE", lines "BIG" and "SAL", confidences 1. "BIG" stands for "big": three of three letters agree.
"SAL" stands for "sale": three of four. The target's reward is (3 + 3) / (3 + 4) = 6/7.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from .chains import TIE, Chains, Link
from .line_fits import HYPHEN, Fit, Targets, fit_lines
from .reading_order import Step
from .targets import Normalisation, edit_distance

# At most this many lines are tried as parts of one target: those that share the most letters with it.
_MAX_LINES = 256
# A longer line may only be a whole target: twice what a prompt may ask for, and more than any image shows in a line. The time to
# compare a line with every span grows with the line.
_LONGEST_LINE = 2_000


class Part(NamedTuple):
    """A line that stands for a span, target[start:end].

    size: the length of the line or of the span, whichever is longer. agreement: size - their edit distance.
    """

    line: int
    confidence: float
    span: str
    start: int
    end: int
    size: int
    agreement: int

    @property
    def similarity(self) -> float:
        return self.agreement / self.size

    @property
    def reward(self) -> float:
        return self.confidence * self.agreement / self.size


# A target's parts in reading order; empty if no line shows it.
Rendering = list[Part]


def reward_of(rendering: Rendering) -> float:
    """The mean of the parts' rewards, weighted by their sizes; 0 for an empty rendering."""
    total = sum(part.size for part in rendering)
    return sum(part.confidence * part.agreement for part in rendering) / total if rendering else 0.0


class TargetLines:
    """Fits the lines of an image, given in reading order, to its targets.

    texts: the lines' texts, normalised. steps: `steps_within_words` of the lines.
    wholes: for each target and each line, the line as the whole target.
    """

    def __init__(
        self,
        targets: Sequence[str],
        texts: Sequence[str],
        confidences: Sequence[float],
        steps: Sequence[Sequence[Step]],
        normalisation: Normalisation,
    ):
        self._targets = Targets(targets, normalisation)
        self._texts, self._confidences, self._steps = texts, confidences, steps
        self._followed = {step.line for goes_on in steps for step in goes_on}
        self._fits: dict[int, Fit] = {}  # by line
        self.wholes = [
            [self._part(target, line, 0, len(text)) for line in range(len(texts))]
            for target, text in enumerate(self._targets.texts)
        ]

    def _part(self, target: int, line: int, start: int, end: int) -> Part:
        text, span = self._texts[line], self._targets.texts[target][start:end]
        within_word = self._targets.within_word[self._targets.origins[target] + end]
        if within_word and HYPHEN.match(text[-1:]) and not HYPHEN.match(span[-1:]):
            text = text[:-1]  # drop the hyphen of a word that goes on in the next line
        size = max(len(text), len(span))
        return Part(line, self._confidences[line], span, start, end, size, size - edit_distance(text, span))

    def best_renderings(self, targets: Sequence[int], lines: Sequence[int]) -> dict[int, Rendering]:
        """For each of these targets, the rendering by these lines (in reading order) with the largest reward.

        Empty if no line agrees with the target in any letter. Renderings of two targets may share lines.

        The reward is a ratio, which Dinkelbach's method (1967) maximises:

            reward = sum of the parts' gains / sum of their sizes
            price  = the best reward so far
            chain  = the parts with the largest sum of gain - price * size

        The last two steps repeat until the reward no longer grows.
        """
        best: dict[int, Rendering] = {}
        surest, tried = {}, {}  # by target
        short = [line for line in lines if len(self._texts[line]) <= _LONGEST_LINE]
        for target in targets:
            useful = [line for line in lines if self._is_useful(target, line)]
            best[target] = self._best_line(target, useful)
            # no rendering can beat the confidence of its surest line
            surest[target] = max((self._confidences[line] for line in useful), default=0.0)
            parts = [line for line in useful if len(self._texts[line]) <= _LONGEST_LINE]
            tried[target] = self._likeliest(target, parts) if len(parts) > _MAX_LINES else short
        rising = list(targets)
        while rising := [target for target in rising if reward_of(best[target]) < surest[target] - TIE]:
            prices = {target: reward_of(best[target]) for target in rising}
            chains = self._best_chains(prices, {target: tried[target] for target in rising})
            rising = [target for target in rising if reward_of(chains[target]) > prices[target] + TIE]
            best.update((target, chains[target]) for target in rising)
        return best

    def _is_useful(self, target: int, line: int) -> bool:
        # a wrong letter in a stacked word shares nothing with the word, but joins the letters around it
        beside = self._steps[line] or line in self._followed
        return bool(beside) or not self._targets.letters[target].isdisjoint(self._texts[line])

    def _best_line(self, target: int, lines: Sequence[int]) -> Rendering:
        best, reward = [], 0.0
        for line in lines:  # the first one wins a tie
            if self.wholes[target][line].reward > reward + TIE / 2:
                best, reward = [self.wholes[target][line]], reward_of([self.wholes[target][line]])
        return best

    def _likeliest(self, target: int, lines: Sequence[int]) -> list[int]:
        """The _MAX_LINES lines that share the most letters with a target and have the fewest others."""

        def surplus(line: int) -> int:
            return len(self._texts[line]) - 2 * _letters_in_common(self._texts[line], self._targets.texts[target])

        return sorted(sorted(lines, key=surplus)[:_MAX_LINES])

    def _best_chains(self, prices: Mapping[int, float], lines: Mapping[int, Collection[int]]) -> dict[int, Rendering]:
        """For each target, the chain of parts with the largest value at its price, by these lines."""
        every_line = sorted(set().union(*lines.values()))
        new = {line: self._texts[line] for line in every_line if line not in self._fits}
        self._fits |= fit_lines(self._targets, new, self._confidences, self._followed)
        chains = Chains(self._targets, prices)
        for line in every_line:
            skipped = [target for target in prices if line not in lines[target]]
            chains.add(line, self._fits[line], self._steps[line], skipped)
        return {target: self._parts(target, chains.best(target)) for target in prices}

    def _parts(self, target: int, chain: Sequence[Link]) -> Rendering:
        """The parts of a chain. A word that no line shows belongs to the line before it, or to the first."""
        starts = [0, *(link.start for link in chain[1:]), len(self._targets.texts[target])]
        return [self._part(target, link.line, *span) for link, *span in zip(chain, starts, starts[1:])]


def _letters_in_common(one: str, other: str) -> int:
    return sum(min(one.count(char), other.count(char)) for char in set(one) & set(other))
