"""What each line of an image gains as each stretch of each target that it may stand for."""

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from .span_agreement import span_agreements
from .targets import Normalisation, normalise

# A line may break at white space, after a hyphen, a dash or a slash, and on either side of a kana or an ideograph.
_EAST_ASIAN = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_HYPHENS = r"\-\u00ad\u2010-\u2015\u2212"
_UNBROKEN = re.compile(rf"[{_EAST_ASIAN}]|[^\s{_EAST_ASIAN}{_HYPHENS}/]*[{_HYPHENS}/]|[^\s{_EAST_ASIAN}{_HYPHENS}/]+")
HYPHEN = re.compile(f"[{_HYPHENS}]")
# A line stands for at most _LONGEST times its own length, one word, or _SHORT_TARGET characters, whichever is longest.
_LONGEST, _SHORT_TARGET = 2, 16
# A longer word may break anywhere. It may be a text in a script without spaces, such as Thai.
_LONGEST_WORD = 40
# Lines are compared with the targets in batches of this many bytes a bit set: more would leave the processor's first cache.
_BATCH = 32_768


class Targets:
    """The targets of an image, side by side in one string: one array holds a number for every place of every target.

    A position is a place before or after a letter. Target t of n letters has the positions origins[t] to origins[t] + n.

    texts, letters: the targets, normalised, and the letters of each.
    joined: the string, with a line break, which no target has, between two targets.
    target_of, place: for each position the number of its target, and how many of the target's letters stand before it.
    breaks: (T,) arrays of the positions where a line may break. within_word: for each position, whether it is no break.
    after_hyphen: for each position, whether the letter before it is a hyphen.
    with_gaps: for each target, whether it is so long that a rendering may leave letters out between two lines. A span of a
        shorter target can cover them.
    """

    def __init__(self, targets: Sequence[str], normalisation: Normalisation):
        self.texts = [normalise(target, normalisation) for target in targets]
        self.letters = [frozenset(text) for text in self.texts]
        self.joined = "\n".join(self.texts)
        lengths = np.array([len(text) for text in self.texts])
        self.origins = [0, *accumulate((lengths + 1).tolist())]  # (T + 1,)
        self.target_of = np.arange(len(targets)).repeat(lengths + 1)
        self.place = np.arange(self.origins[-1]) - np.array(self.origins)[self.target_of]
        self.breaks = [
            np.array(_breaks(target, text, normalisation)) + origin
            for target, text, origin in zip(targets, self.texts, self.origins)
        ]
        self.within_word = np.ones(self.origins[-1], dtype=bool)
        self.within_word[np.concatenate(self.breaks)] = False
        self.after_hyphen = np.array([False, *(HYPHEN.match(char) is not None for char in self.joined)])
        self._lengths = lengths
        self._longest = np.array([max(int(np.diff(breaks).max()), _SHORT_TARGET) for breaks in self.breaks])
        self.with_gaps = lengths > self._longest
        self._spans: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}  # by the line's length

    def spans_of(self, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The spans that a line of this length may stand for; the same arrays whenever it is asked.

        Returns their lengths (width,), from 1; for each position the length of the longest that ends there (N,); and whether
        the one as long as the line is a piece of a word (N,). All lengths are int16, which compares quickly.
        """
        if length not in self._spans:
            by_target = np.minimum(self._lengths, np.maximum(_LONGEST * length, self._longest))
            longest = np.minimum(self.place, by_target[self.target_of])
            pieces = (longest >= max(length, 1)) & (self.within_word | np.roll(self.within_word, length))
            lengths = np.arange(1, by_target.max() + 1, dtype=np.int16)
            self._spans[length] = lengths, longest.astype(np.int16), pieces & (length > 0)
        return self._spans[length]


class Fit(NamedTuple):
    """A line's gains. Each row has the spans that end at one position; the columns are their lengths, from 1.

    ends: (r,) the rows' positions, ascending. A position is left out if the line may not stand for any span that ends there.
    bounds: (T + 1,) the first row of each target, and r.
    gain: (r, width), confidence * agreement; -inf where the line may not stand for the span.
    size: (1 or r, width), the length of the line or of the span, whichever is longer.
    length: of the line's text. wrong: rows of the spans of this length that are pieces of a word, and all wrong.
    at_break: (r,) whether a line may break at the row's position.
    followed: whether another line may continue this line's last word.
    """

    ends: np.ndarray
    bounds: list[int]
    gain: np.ndarray
    size: np.ndarray
    length: int
    wrong: np.ndarray
    at_break: np.ndarray
    followed: bool


def fit_lines(
    targets: Targets, texts: Mapping[int, str], confidences: Sequence[float], followed: Container[int]
) -> dict[int, Fit]:
    """The fit of each line. texts: {line: its text}. followed: the lines whose last word another line may continue."""
    wanted = set(texts.values()) | {text[:-1] for text in texts.values() if _ends_in_hyphen(text)}
    agreements = dict(_agreements(targets, sorted(wanted, key=len)))
    return {line: _fit(targets, text, agreements, confidences[line], line in followed) for line, text in texts.items()}


def _agreements(targets: Targets, texts: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """For each text its agreement with every span, (N, width) int16. texts: ascending by length, no two alike."""
    while texts:
        # a batch of texts of similar lengths
        size = len(targets.place) * min(1 + len(texts[0]) // 8, 8)
        batch, texts = texts[: max(_BATCH // size, 1)], texts[max(_BATCH // size, 1) :]
        tables = span_agreements(batch, targets.joined, len(targets.spans_of(len(batch[-1]))[0]))
        yield from zip(batch, tables, strict=True)


def _fit(targets: Targets, text: str, agreements: Mapping[str, np.ndarray], confidence: float, followed: bool) -> Fit:
    lengths, longest, pieces = targets.spans_of(len(text))
    agreement, size = agreements[text][:, : len(lengths)], np.maximum(len(text), lengths)[None]
    if _ends_in_hyphen(text):  # within a word the hyphen does not count as a letter
        within = targets.within_word & ~targets.after_hyphen
        agreement = np.where(within[:, None], agreements[text[:-1]][:, : len(lengths)], agreement)
        size = np.where(within[:, None], np.maximum(len(text) - 1, lengths), size)
    # a piece of a word may be all wrong: it then takes the place of as many letters
    wrong = pieces & (agreement[:, min(len(text), len(lengths)) - 1] == 0)
    ends = agreement.any(axis=1) | wrong
    if not followed:
        ends &= ~targets.within_word
    ends = ends.nonzero()[0]
    agreement = agreement[ends]  # (r, width)
    right = (agreement > 0) & (lengths <= longest[ends, None])
    gain = np.where(right, confidence * agreement, -np.inf)
    wrong = wrong[ends].nonzero()[0]
    gain[wrong, min(len(text), len(lengths)) - 1] = 0.0
    return Fit(
        ends=ends,
        bounds=ends.searchsorted(targets.origins).tolist(),
        gain=gain,
        size=size if len(size) == 1 else size[ends],
        length=len(text),
        wrong=wrong,
        at_break=~targets.within_word[ends],
        followed=followed,
    )


def _ends_in_hyphen(text: str) -> bool:
    return len(text) > 1 and HYPHEN.match(text[-1]) is not None


def _breaks(target: str, text: str, normalisation: Normalisation) -> list[int]:
    """Where a line may break: positions in the normalised text, including its start and its end."""
    ends = list(accumulate((len(normalise(word, normalisation)) for word in _UNBROKEN.findall(target)), initial=0))
    if ends[-1] != len(text):  # normalising word by word gives another text: allow no breaks
        ends = [0, len(text)]
    long = [range(start + 1, end) for start, end in zip(ends, ends[1:]) if end - start > _LONGEST_WORD]
    return sorted(set(ends).union(*long))
