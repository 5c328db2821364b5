"""Lines of text -> targets: which line shows which part of which target, and how well.

A target may be broken into several lines. Then lines in reading order show it, and each line stands for a span of the
target. The spans follow one another, begin and end where a line may break, and together are the whole target. So a word
that no line shows belongs to the span of a neighbouring line, and lowers that line's similarity. A single letter stands for
a whole span, and lacks the rest of it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from .engine import TextLine
from .reading_order import reading_order, steps_within_words
from .rendering import TIE, Part, Rendering, TargetLines, reward_of
from .targets import Normalisation, normalise, similarity


@dataclass(frozen=True, eq=False)
class LineMatch:
    """What an image's L lines are worth against its T targets.

    spans: for each line, the part of a target that it stands for, normalised; None for extra text, which matches no target.
    box_rewards: (L,) float32, confidence * similarity of each line with its span; 0 for extra text.
    repeats: (L,) float32 in [0, 1], how much extra text looks like another attempt at a target; 0 for a line that has a span.
    reward, similarity, confidence: means over the targets, in [0, 1]. A target's value is the weighted mean over its lines
        of box reward, similarity or confidence; the weight is the length of the line or of its span, whichever is longer.
        A target without a line has 0. Repeated attempts lower the reward (`match_lines`).
    exact: the share of targets whose lines spell them without an error.
    missing: the share of targets without a line.
    """

    spans: tuple[str | None, ...]
    box_rewards: np.ndarray
    repeats: np.ndarray
    reward: float
    similarity: float
    confidence: float
    exact: float
    missing: float


def match_lines(
    lines: Sequence[TextLine],
    targets: Sequence[str],
    normalisation: Normalisation = "flow_grpo",
    repeat_penalty: float = 0.0,
) -> LineMatch:
    """Give each target the lines that show it best. No line goes to two targets.

    targets: at least one, as written, not empty once normalised. The order of lines and of targets does not matter.
    Every target gets a line as long as lines are left, even a line that shares no letter with it: such a line is a failed
    attempt, and takes the blame. The lines that remain are extra text.

    A single target gets its best rendering. Several targets first get one line each, by the Hungarian matching with the
    largest sum of rewards. Then the targets take turns, best first. A target gets its best rendering in several lines if
    that makes the sum larger (a greedy choice).

    repeat_penalty: in [0, 1], the share of a target's reward that repeated attempts at it cost. An extra line may repeat a
    part of a target that another line, the part's own, stands for:

        r      = min(1, similarity of the extra line with the part / similarity of the part's own line) ** 2
        n      = length of the target's own lines, each counted as the longer of the line and its span
        m      = length of the extra lines that repeat its parts, each multiplied by its r
        reward = (mean of the target's own lines) * (1 - repeat_penalty * m / (n + m))
    """
    order = reading_order(lines)
    ordered = [lines[i] for i in order]
    texts = [normalise(line.text, normalisation) for line in ordered]
    renderings = _assign(ordered, texts, sorted(targets), normalisation)
    spans: list[str | None] = [None] * len(lines)
    box_rewards, repeats = np.zeros(len(lines), np.float32), np.zeros(len(lines), np.float32)
    for part in (part for rendering in renderings for part in rendering):
        spans[order[part.line]] = part.span
        box_rewards[order[part.line]] = part.reward
    repeated = [0.0] * len(targets)  # m: characters in the further attempts at each target, weighted by r
    for i, text in enumerate(texts):
        if spans[order[i]] is None:
            target, resemblance = _repeats(text, renderings)
            repeats[order[i]] = resemblance
            repeated[target] += resemblance * len(text)
    rewards = [
        reward_of(rendering) * (1 - repeat_penalty * extra / (extra + max(sum(part.size for part in rendering), 1)))
        for rendering, extra in zip(renderings, repeated, strict=True)
    ]

    def mean(value: Callable[[Part], float]) -> float:
        return sum(_mean(rendering, value) for rendering in renderings) / len(targets)

    return LineMatch(
        spans=tuple(spans),
        box_rewards=box_rewards,
        repeats=repeats,
        reward=sum(rewards) / len(targets),
        similarity=mean(lambda part: part.agreement),
        confidence=mean(lambda part: part.confidence * part.size),
        exact=sum(_mean(rendering, lambda part: part.agreement) == 1 for rendering in renderings) / len(targets),
        missing=sum(not rendering for rendering in renderings) / len(targets),
    )


def _mean(rendering: Rendering, value: Callable[[Part], float]) -> float:
    return sum(map(value, rendering)) / sum(part.size for part in rendering) if rendering else 0.0


def _repeats(text: str, renderings: Sequence[Rendering]) -> tuple[int, float]:
    """Which target an extra line repeats a part of (its index), and how much it repeats it, in [0, 1]."""
    best, letters = (0, 0.0), frozenset(text)
    for target, rendering in enumerate(renderings):
        for part in rendering:
            if part.agreement and not letters.isdisjoint(part.span):
                resemblance = min(similarity(text, part.span) / part.similarity, 1.0) ** 2
                best = max(best, (target, resemblance), key=lambda found: found[1])
    return best


def _assign(
    lines: Sequence[TextLine], texts: Sequence[str], targets: Sequence[str], normalisation: Normalisation
) -> list[Rendering]:
    """Find a rendering of each target. The lines come in reading order, with normalised texts.

    1. Every target gets one line, as a whole, by Hungarian matching.
    2. The targets take turns; the one with the best rendering in several lines is first. The other targets are matched
       anew with the lines that are left. The target keeps its rendering if the sum of all rewards grows.

    Worked example. Targets "BIG SALE" and "HUT", lines "BIG", "SALE" and "HUT", confidences 1. First "BIG SALE" gets "SALE"
    (4/7) and "HUT" its own (1): 11/7. Then "BIG SALE" takes "BIG" and "SALE" (1), which leaves "HUT" its line: 2.
    """
    confidences = [line.confidence for line in lines]
    fits = TargetLines(targets, texts, confidences, steps_within_words(lines), normalisation)
    match_whole = _WholeMatch(fits.wholes, [_area(line.quad) for line in lines])
    free, broken = list(range(len(lines))), {}
    whole = match_whole(range(len(targets)), free)
    best = fits.best_renderings(range(len(targets)), free)
    order = sorted(best, key=lambda target: -reward_of(best[target]))
    for turn, target in enumerate(order):
        if not _is_free(best[target], free):
            # the other targets whose lines are taken are done with it: one pass over the lines serves them all
            stale = [other for other in order[turn:] if not _is_free(best[other], free)]
            best |= fits.best_renderings(stale, free)
        rendering = best[target]
        if len(rendering) < 2:
            continue
        taken = {part.line for part in rendering}
        left = [i for i in free if i not in taken]
        others = match_whole([t for t in whole if t != target], left)
        if reward_of(rendering) + sum(map(reward_of, others.values())) > sum(map(reward_of, whole.values())) + TIE:
            broken[target], free, whole = rendering, left, others
    return [(broken | whole)[target] for target in range(len(targets))]


def _is_free(rendering: Rendering, free: Collection[int]) -> bool:
    return all(part.line in free for part in rendering)


class _WholeMatch:
    """Matches targets, as wholes, with one line each (Hungarian matching). Some get none if lines are too few.

    wholes: [target][line], the line as the whole target. areas: of the lines' boxes.
    Raises ImportError where scipy is not installed.
    """

    def __init__(self, wholes: Sequence[Sequence[Part]], areas: Sequence[float]):
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError as error:
            raise ImportError('text rewards need scipy: pip install "flow-grpo-maps[ocr]"') from error
        self._assign, self._wholes = linear_sum_assignment, wholes
        rewards = [[part.reward + TIE * part.similarity for part in row] for row in wholes]
        larger = np.array(areas) / max(max(areas, default=0.0), 1.0)
        self._rewards = np.array(rewards).reshape(len(wholes), len(areas)) + TIE**2 * larger  # (T, L)

    def __call__(self, targets: Sequence[int], lines: Sequence[int]) -> dict[int, Rendering]:
        renderings: dict[int, Rendering] = {target: [] for target in targets}
        if targets and lines:
            for row, column in zip(*self._assign(self._rewards[np.ix_(targets, lines)], maximize=True)):
                renderings[targets[row]] = [self._wholes[targets[row]][lines[column]]]
        return renderings


def _area(quad: np.ndarray) -> float:
    (x0, y0), (x1, y1) = (quad[2] - quad[0]).tolist(), (quad[3] - quad[1]).tolist()
    return abs(x0 * y1 - x1 * y0) / 2
