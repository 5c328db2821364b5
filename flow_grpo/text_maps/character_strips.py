"""Compare a line's characters with the text that it should show, and give each character's strip of the box a reward."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .engine import Character
from .targets import Normalisation, edit_operations, normalise

# The largest share of its strip that a character lends to a missing one on one side. With one on each side it keeps 1/3.
_LENT = 1 / 3


class Strips(NamedTuple):
    """A box's reward along its line: rewards[i] from ends[i - 1] to ends[i].

    ends: ascending to 1, shares of the way from the quad's left edge (corners 0 and 3) to its right edge (corners 1 and 2).
    """

    ends: tuple[float, ...]
    rewards: tuple[float, ...]


def character_strips(
    characters: Sequence[Character], span: str, box_reward: float, normalisation: Normalisation = "flow_grpo"
) -> Strips:
    """The rewards along a line that stands for `span` (normalised) and is worth box_reward as a whole.

    The fewest edits that turn the characters into the span decide which characters are right:

        right character              its confidence
        wrong or extra character     0
        missing character            0, in a strip around the place where it should stand

    The strip of a missing character is as wide as a character, or narrower where its neighbours cannot lend that much. If
    the mean along the line would be above box_reward, all rewards are scaled down to it: a few right letters in a line that
    lacks the rest gain nothing.
    The border between two characters lies in the middle of their gap. A character that normalisation drops, such as a
    space, has no strip.

    Worked example. "HT", each half of the line wide and of confidence 1, stands for "hut", so box_reward is 2/3. The edit is one
    insertion before the second character. The missing "u" may take a third of the line (1 of 3 characters), half of it from
    each neighbour; a neighbour lends at most a third of its own half, which is 1/6 as well. So the strips end at 1/3, 2/3 and
    1, with rewards 1, 0 and 1: their mean along the line is 2/3, which is box_reward, and nothing is scaled down.
    """
    shown = [piece for character in characters for piece in _normalised(character, normalisation)]
    if not shown:
        return Strips((1.0,), (box_reward,))
    # 1. the fewest edits: how many characters are missing at each border, and which of those shown are wrong
    num_missing = np.zeros(len(shown) + 1)  # before each character, and after the last
    rewards = np.array([character.confidence for character in shown])
    for operation, i, _ in edit_operations("".join(character.text for character in shown), span):
        if operation == "insert":
            num_missing[i] += 1
        else:
            rewards[i] = 0
    # 2. where one character ends and the next begins, as if none were missing
    gaps = [(before.end + after.start) / 2 for before, after in zip(shown, shown[1:])]
    borders = np.maximum.accumulate([0.0, *gaps, 1.0])
    # 3. missing characters push their neighbours apart, by as much as the neighbours can lend
    lent = np.diff(borders) * _LENT
    width = num_missing / (len(shown) + num_missing.sum())
    half = width / 2
    half[[0, -1]] = width[[0, -1]]  # at each end of the line only one neighbour can lend
    starts = borders[:-1] + np.minimum(half[:-1], lent)  # of each character's strip
    ends = borders[1:] - np.minimum(half[1:], lent)
    # 4. all strips in order: before and after each character stands a missing character's strip, which is often empty
    every_end = np.append(np.stack([starts, ends], axis=1).ravel(), 1.0)
    every_reward = np.append(np.stack([np.zeros_like(rewards), rewards], axis=1).ravel(), 0.0)
    # 5. scale down to the box's reward, and leave out empty strips
    widths = np.diff(every_end, prepend=0.0)
    every_reward *= min(1.0, box_reward / max(float(widths @ every_reward), 1e-6))
    kept = widths > 0
    return Strips(tuple(every_end[kept].tolist()), tuple(every_reward[kept].tolist()))


def _normalised(character: Character, normalisation: Normalisation) -> list[Character]:
    """The characters that take part in the comparison: none for a space; several, side by side, for a ligature."""
    text = normalise(character.text, normalisation)
    borders = np.linspace(character.start, character.end, len(text) + 1).tolist()
    return [Character(char, character.confidence, start, end) for char, start, end in zip(text, borders, borders[1:])]
