"""Find the lines that show one target best. In reading order, each stands for a span; the spans make up the whole target.

A span begins and ends where a line may break. It may also end within a word if the next line continues that word
(`steps_within_words`). So stacked letters form one word, and so do the halves of a word that is broken at a hyphen.

Worked example. Target "BIG SALE", lines "BIG" and "SAL", confidences 1. "BIG" stands for "big": three of three letters agree.
"SAL" stands for "sale": three of four. The target's reward is (3 + 3) / (3 + 4) = 6/7.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from .reading_order import Step
from .targets import Normalisation, edit_distance, normalise

# A line may break at white space, after a hyphen, a dash or a slash, and on either side of a kana or an ideograph.
_EAST_ASIAN = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_HYPHENS = r"\-\u00ad\u2010-\u2015\u2212"
_UNBROKEN = re.compile(rf"[{_EAST_ASIAN}]|[^\s{_EAST_ASIAN}{_HYPHENS}/]*[{_HYPHENS}/]|[^\s{_EAST_ASIAN}{_HYPHENS}/]+")
_HYPHEN = re.compile(f"[{_HYPHENS}]")
# Breaks ties: fewer lines win, then higher similarity, then larger boxes. It is far below any difference in reward.
TIE = 1e-7
# A line stands for at most _LONGEST times its own length, one word, or _SHORT_TARGET characters, whichever is longest.
_LONGEST, _SHORT_TARGET = 2, 16
# A longer word may break anywhere. It may be a text in a script without spaces, such as Thai.
_LONGEST_WORD = 40
# At most this many lines are tried as parts of one target: those that share the most letters with it.
_MAX_LINES = 256


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


class _Fit(NamedTuple):
    """How well a line shows each span of a target. Rows: the span's end (0 to n); columns: its length (1 to `width`).

    agreement, size: (n + 1, width), as in Part. The agreement is 0 where the span would begin before the target.
    """

    agreement: np.ndarray
    size: np.ndarray


class TargetLines:
    """Fits the lines of an image, given in reading order, to one target.

    text: the target, normalised. texts: the lines' texts, normalised. steps: `steps_within_words` of the lines.
    """

    def __init__(
        self,
        target: str,
        texts: Sequence[str],
        confidences: Sequence[float],
        steps: Sequence[Sequence[Step]],
        normalisation: Normalisation,
    ):
        self.text = normalise(target, normalisation)
        self._texts, self._confidences, self._steps = texts, confidences, steps
        self._breaks = _breaks(target, self.text, normalisation)
        self._within_word = np.ones(len(self.text) + 1, dtype=bool)
        self._within_word[self._breaks] = False
        self._longest = max(int(np.diff(self._breaks).max()), _SHORT_TARGET)
        self._fits: dict[str, _Fit] = {}  # by the line's text
        # keep these lines: a wrong letter in a stacked word shares nothing with the word, but joins the letters around it
        followed = {step.line for goes_on in steps for step in goes_on}
        self._beside = [bool(goes_on) or line in followed for line, goes_on in enumerate(steps)]
        self._in_common = np.array([_letters_in_common(text, self.text) for text in texts])

    def part(self, line: int, start: int = 0, end: int | None = None) -> Part:
        """The line as text[start:end], by default as the whole target."""
        end = len(self.text) if end is None else end
        text, span = self._texts[line], self.text[start:end]
        if _HYPHEN.match(text[-1:]) and self._within_word[end] and not _HYPHEN.match(span[-1:]):
            text = text[:-1]  # drop the hyphen of a word that goes on in the next line
        size = max(len(text), len(span))
        return Part(line, self._confidences[line], span, start, end, size, size - edit_distance(text, span))

    def best_rendering(self, lines: Sequence[int]) -> Rendering:
        """The rendering by these lines (in reading order) with the largest reward. Empty if no line agrees in any letter.

        The reward is a ratio, which Dinkelbach's method (1967) maximises:

            reward = sum of the parts' gains / sum of their sizes
            price  = the best reward so far
            chain  = the parts with the largest sum of gain - price * size

        The last two steps repeat until the reward no longer grows.
        """
        useful = [line for line in lines if self._in_common[line] or self._beside[line]]
        best: Rendering = []
        for line in useful:  # the first one wins a tie
            if self.part(line).reward > reward_of(best) + TIE / 2:
                best = [self.part(line)]
        surest = max((self._confidences[line] for line in useful), default=0.0)
        if len(useful) > _MAX_LINES:
            surplus = [len(text) - common for text, common in zip(self._texts, self._in_common)]
            likely = sorted(useful, key=lambda line: surplus[line] - self._in_common[line])
            useful = sorted(likely[:_MAX_LINES])
        while reward_of(best) < surest - TIE:  # no rendering can beat the confidence of its surest line
            chain = self._best_chain(useful, price=reward_of(best))
            if reward_of(chain) <= reward_of(best) + TIE:
                break
            best = chain
        return best

    def _best_chain(self, lines: Sequence[int], price: float) -> Rendering:
        """The chain of parts with the largest value: at most one part per line, from the target's start to its end.

            value of a part = confidence * agreement - price * size

        A letter that no part covers costs the price.

        Worked example. Target "BIG SALE" (n = 7), lines 0 "BIG" and 1 "SAL", price 0.5.
            Line 0 as "big": 3 - 0.5 * 3 = 1.5, which ends at 3.    Line 0 as "bigsale": 3 - 0.5 * 7 = -0.5, which ends at 7.
            Line 1 as "sale" begins at 3: 1.5 + 3 - 0.5 * 4 = 2.5, which ends at 7. It is the best that ends at 7.
        """
        n = len(self.text)
        positions = np.arange(n + 1)
        # best[p]: the value of the best chain that covers text[:p]; came[p]: its last line (-1: none) and where that ends
        best, came = np.where(positions > 0, -np.inf, 0.0), [(-1, 0)] * (n + 1)
        if n > self._longest:  # a shorter target needs no gaps: a span can cover any omitted letters
            best = -price * positions
        ends: dict[int, np.ndarray] = {}  # line -> the value of the best chain whose last part is that line, by its end
        links: dict[int, tuple] = {}  # line -> the length of that part, by its end, and what comes before, by its start
        for line in lines:
            fit = self._fit(line)
            # 1. where this line may begin: at a break, or within a word that it continues from an earlier line
            begin, before = np.where(self._within_word, -np.inf, best), list(came)
            for step in self._steps[line]:
                if step.line in ends:
                    value = ends[step.line] - TIE * step.gap
                    for p in np.flatnonzero(self._within_word & (value > begin)).tolist():
                        begin[p], before[p] = value[p], (step.line, p)
            # 2. the best span for each end
            starts = positions[:, None] - np.arange(1, fit.agreement.shape[1] + 1)  # (n + 1, width)
            value = begin[starts.clip(0)] + self._confidences[line] * fit.agreement - price * fit.size - TIE
            # a piece of a word may be all wrong: it then takes the place of as many letters
            wrong_piece = self._within_word[:, None] | self._within_word[starts.clip(0)]
            wrong_piece &= positions[:, None] - starts == len(self._texts[line])
            wrong_piece &= fit.agreement == 0
            value += 5 * TIE * wrong_piece  # rather than a right letter that stands for two
            value = np.where((starts >= 0) & (wrong_piece | (fit.agreement > 0)), value, -np.inf)
            length = value.argmax(axis=1)
            ends[line], links[line] = value[positions, length], (length + 1, before)
            # 3. chains that this line improves: those that end where it ends, and longer ones that leave out the letters after it
            left_out, end, at_end = -np.inf, 0, ends[line].tolist()
            for p in self._breaks:
                if at_end[p] > left_out - price * p + TIE / 2 or n <= self._longest:
                    left_out, end = at_end[p] + price * p, p
                if left_out - price * p > best[p] + TIE / 2:
                    best[p], came[p] = left_out - price * p, (line, end)
        return self._parts(*came[n], links)

    def _parts(self, line: int, end: int, links: Mapping[int, tuple]) -> Rendering:
        """Follow a chain back to its start. A word that no line shows belongs to the line before it, or to the first."""
        chain: Rendering = []
        until = len(self.text)
        while line >= 0:
            lengths, before = links[line]
            start = end - int(lengths[end])
            line_before, end_before = before[start]
            chain.insert(0, self.part(line, start if line_before >= 0 else 0, until))
            line, end, until = line_before, end_before, start
        return chain

    def _fit(self, line: int) -> _Fit:
        text = self._texts[line]
        if text in self._fits:
            return self._fits[text]
        width = min(len(self.text), max(_LONGEST * len(text), self._longest))
        codes = np.array([ord(char) for char in text], dtype=np.int32)
        target = np.array([ord(char) for char in self.text], dtype=np.int32)
        agreement, shorter = _agreements(codes, target, width)
        size = np.maximum(len(text), np.arange(1, width + 1))[None].repeat(len(target) + 1, axis=0)
        if len(text) > 1 and _HYPHEN.match(text[-1]):
            # within a word the hyphen does not count as a letter
            rows = self._within_word & np.array([True, *(not _HYPHEN.match(char) for char in self.text)])
            agreement[rows] = shorter[rows]
            size[rows] = np.maximum(len(text) - 1, np.arange(1, width + 1))
        self._fits[text] = _Fit(agreement, size)
        return self._fits[text]


def _breaks(target: str, text: str, normalisation: Normalisation) -> list[int]:
    """Where a line may break: positions in the normalised text, including its start and its end."""
    ends = list(accumulate((len(normalise(word, normalisation)) for word in _UNBROKEN.findall(target)), initial=0))
    if ends[-1] != len(text):  # normalising word by word gives another text: allow no breaks
        ends = [0, len(text)]
    long = [range(start + 1, end) for start, end in zip(ends, ends[1:]) if end - start > _LONGEST_WORD]
    return sorted(set(ends).union(*long))


def _letters_in_common(one: str, other: str) -> int:
    return sum(min(one.count(char), other.count(char)) for char in set(one) & set(other))


def _agreements(text: np.ndarray, target: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The agreement of a text with every span of a target: the longer one's length minus their edit distance.

    text (l,), target (n,): characters as numbers. Returns two (n + 1, width) int16, one for the text and one for the text
    without its last character. Row e, column k - 1 belongs to target[e - k : e]; it is 0 if that begins before the target.

    The table of edit distances is filled for all starts of a span at once, one row per character of the text (Wagner and
    Fischer, 1974), where k is the span's length:

        d[k] = min(d_before[k] + 1, d_before[k - 1] + differs, d[k - 1] + 1)

    With k subtracted from each distance, the last term becomes a running minimum.
    """
    n, lengths = len(target), np.arange(width + 1, dtype=np.int16)[:, None]  # (width + 1, 1)
    padded = np.concatenate([target, np.full(width, -1, dtype=target.dtype)])
    letters = np.lib.stride_tricks.sliding_window_view(padded, n)[:width]  # (width, n): target[start + k - 1]
    distance = np.zeros((width + 1, n), dtype=np.int16)  # minus k; the distance of an empty text is k
    shorter = distance
    for row, char in enumerate(text.tolist(), 1):
        shorter = distance
        distance = np.empty_like(shorter)
        distance[0] = row
        np.minimum(shorter[1:] + 1, shorter[:-1] + (letters != char) - 1, out=distance[1:])
        shift = 1
        while shift <= width:  # a running minimum over k, by doubling
            np.minimum(distance[shift:], distance[:-shift], out=distance[shift:])
            shift *= 2
    both = []
    for length, table in ((len(text), distance), (len(text) - 1, shorter)):
        agreement = np.maximum(length - lengths, 0) - table  # (width + 1, n), by start
        ends, spans = np.arange(n + 1)[:, None], np.arange(1, width + 1)[None]
        starts = ends - spans  # (n + 1, width)
        both.append(np.where(starts >= 0, agreement[spans, starts.clip(0, n - 1)], 0).astype(np.int16))
    return both[0], both[1]
