"""Lines of text -> targets: which line shows which part of which target, and how well.

A target may be broken into several lines. It is then shown by lines in reading order, each of which stands for a span of
the target; spans follow one another, begin and end where a line may break, and together are the whole target. So a word
that no line shows counts against its neighbour, and a lone letter stands for, and lacks, all the rest of its span.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .engine import TextLine
from .targets import Normalisation, edit_distance, normalise

# A line may break at white space, after a hyphen, and on either side of a kana or an ideograph.
_EAST_ASIAN = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNBROKEN = re.compile(rf"[{_EAST_ASIAN}]|[^\s{_EAST_ASIAN}-]*-|[^\s{_EAST_ASIAN}-]+")
# Decides between equals, far below any difference in reward that matters: fewer lines, then the more alike, then the larger.
_TIE = 1e-7


@dataclass(frozen=True, eq=False)
class LineMatch:
    """What an image's L lines are worth against its T targets.

    spans: L, the part of a target that the line stands for, normalised; None for extra text, which matches nothing.
    box_rewards: (L,) confidence * similarity of each line with its span; 0 for extra text.
    reward, similarity, confidence: the mean over targets, in [0, 1]. For a target they are the means of its lines' box
        rewards, similarities and confidences, weighted by length (of the line or its span, the longer): of a single line
        its own. 0 for a target without a line.
    exact: the share of targets that their lines spell without an error.
    missing: the share of targets without a line.
    """

    spans: tuple[str | None, ...]
    box_rewards: Tensor
    reward: float
    similarity: float
    confidence: float
    exact: float
    missing: float


class _Part(NamedTuple):
    """A line that stands for target[start:end]. size: the longer's length; agreement: size less their edit distance."""

    line: int
    confidence: float
    span: str
    start: int
    end: int
    size: int
    agreement: int


# A target's lines in reading order; none where nothing shows it.
_Rendering = list[_Part]


def match_lines(
    lines: Sequence[TextLine], targets: Sequence[str], normalisation: Normalisation = "flow_grpo"
) -> LineMatch:
    """Give each target the lines that show it best, no line to two targets.

    targets: at least one, as written, not empty once normalised. The order of lines and of targets does not matter.
    While there are lines every target gets one, be it without a letter in common: a failed attempt, to be blamed. What
    remains is extra text.

    One target gets its best rendering of all. Several get one line each by Hungarian matching, of the largest sum of rewards;
    then, best first, a target gets its best rendering in several lines where that makes the sum larger (a greedy choice).
    """
    order = reading_order(lines)
    renderings = _assign([lines[i] for i in order], sorted(targets), normalisation)
    spans: list[str | None] = [None] * len(lines)
    box_rewards = torch.zeros(len(lines))
    for part in (part for rendering in renderings for part in rendering):
        spans[order[part.line]] = part.span
        box_rewards[order[part.line]] = part.confidence * part.agreement / part.size

    def mean(value: Callable[[_Part], float]) -> float:
        return sum(_mean(rendering, value) for rendering in renderings) / len(targets)

    return LineMatch(
        spans=tuple(spans),
        box_rewards=box_rewards,
        reward=mean(lambda part: part.confidence * part.agreement),
        similarity=mean(lambda part: part.agreement),
        confidence=mean(lambda part: part.confidence * part.size),
        exact=sum(_mean(rendering, lambda part: part.agreement) == 1 for rendering in renderings) / len(targets),
        missing=sum(not rendering for rendering in renderings) / len(targets),
    )


def reading_order(lines: Sequence[TextLine]) -> list[int]:
    """Indices of the lines from top to bottom, and in a row from left to right, whatever order they are given in.

    Rows run along the mean direction of the lines, so that a tilt of the whole does not tear a row apart. A line whose
    middle is less than half a line's height below a row's is part of that row. Right-to-left scripts are not told apart.
    """
    if not lines:
        return []
    quads = np.stack([line.quad for line in lines]).astype(np.float64)  # (L, 4, 2)
    edges = (quads[:, 1] - quads[:, 0]) + (quads[:, 2] - quads[:, 3])  # (L, 2), twice the direction of writing
    along, length = edges.sum(axis=0), np.linalg.norm(edges, axis=1).sum()
    # lines that run every which way have no common direction
    along = along / np.linalg.norm(along) if np.linalg.norm(along) > 0.5 * length else np.array([1.0, 0.0])
    centres = quads.mean(axis=1)
    across, down = centres @ along, centres @ np.array([-along[1], along[0]])
    heights = (
        np.linalg.norm(quads[:, 0] - quads[:, 3], axis=1) / 2 + np.linalg.norm(quads[:, 1] - quads[:, 2], axis=1) / 2
    )

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


def _mean(rendering: _Rendering, value: Callable[[_Part], float]) -> float:
    return sum(map(value, rendering)) / sum(part.size for part in rendering) if rendering else 0.0


def _reward(rendering: _Rendering) -> float:
    return _mean(rendering, lambda part: part.confidence * part.agreement)


def _assign(lines: Sequence[TextLine], targets: Sequence[str], normalisation: Normalisation) -> list[_Rendering]:
    """A rendering of each target by lines given in reading order."""
    texts = [normalise(line.text, normalisation) for line in lines]
    candidates = [
        [_parts(i, text, lines[i].confidence, spans) for i, text in enumerate(texts)]
        for spans in (_spans(target, normalisation) for target in targets)
    ]  # [target][line]: a part for each span
    areas = np.array([_area(line.quad) for line in lines])
    free, broken = list(range(len(lines))), {}
    whole = _match_whole(candidates, range(len(targets)), free, areas)
    best = [_best_rendering(parts, free) for parts in candidates]
    for target in sorted(range(len(targets)), key=lambda target: -_reward(best[target])):
        rendering = best[target]
        if any(part.line not in free for part in rendering):
            rendering = _best_rendering(candidates[target], free)
        if len(rendering) < 2:
            continue
        left = [i for i in free if all(i != part.line for part in rendering)]
        others = _match_whole(candidates, [t for t in whole if t != target], left, areas)
        if _reward(rendering) + sum(map(_reward, others.values())) > sum(map(_reward, whole.values())) + _TIE:
            broken[target], free, whole = rendering, left, others
    return [(broken | whole)[target] for target in range(len(targets))]


def _spans(target: str, normalisation: Normalisation) -> list[tuple[str, int, int]]:
    """What a line can stand for: (text, start, end) of the normalised target, the whole first.

    Then the later ends come first, and of these the later starts: of equal chains `_best_chain` keeps the one in which a word
    that no line shows belongs to the line before it.
    """
    whole = normalise(target, normalisation)
    ends = list(accumulate((len(normalise(word, normalisation)) for word in _UNBROKEN.findall(target)), initial=0))
    if ends[-1] != len(whole):  # a normalisation that reaches across words
        ends = [0, len(whole)]
    pairs = sorted(combinations(sorted(set(ends)), 2), key=lambda pair: (-pair[1], -pair[0]))
    pairs.insert(0, pairs.pop(pairs.index((0, len(whole)))))
    return [(whole[start:end], start, end) for start, end in pairs]


def _parts(line: int, text: str, confidence: float, spans: Sequence[tuple[str, int, int]]) -> list[_Part]:
    sizes = [max(len(text), len(span)) for span, _, _ in spans]
    return [
        _Part(line, confidence, *span, size, size - edit_distance(text, span[0])) for span, size in zip(spans, sizes)
    ]


def _match_whole(
    candidates: Sequence[Sequence[Sequence[_Part]]], targets: Sequence[int], lines: Sequence[int], areas: np.ndarray
) -> dict[int, _Rendering]:
    """Hungarian matching of these targets, each as a whole, with a line each while there are any.

    Raises ImportError where scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError('text rewards need scipy: pip install "flow-grpo-maps[ocr]"') from error
    renderings: dict[int, _Rendering] = {target: [] for target in targets}
    if not targets or not lines:
        return renderings
    parts = [[candidates[target][line][0] for line in lines] for target in targets]  # [target][line]
    rewards = [[_reward([part]) + _TIE * part.agreement / part.size for part in row] for row in parts]
    larger = areas[lines] / max(areas.max(), 1.0)  # (L,)
    for row, column in zip(*linear_sum_assignment(np.array(rewards) + _TIE**2 * larger, maximize=True)):
        renderings[targets[row]] = [parts[row][column]]
    return renderings


def _best_rendering(candidates: Sequence[Sequence[_Part]], lines: Sequence[int]) -> _Rendering:
    """The rendering of the largest reward by these lines, in reading order; none where no line agrees in a letter.

    The reward is a ratio, the summed gains of the parts by their summed sizes. Dinkelbach's method (1967): find the chain of
    parts with the largest sum of gain - price * size, the price being the best reward so far, until that grows no more.
    """
    useful = [[part for part in candidates[line] if part.agreement] for line in lines]
    end = candidates[0][0].end if candidates else 0
    best: _Rendering = []
    while True:
        chain = _best_chain(useful, end, price=_reward(best))
        if _reward(chain) <= _reward(best) + _TIE:
            return best
        best = chain


def _best_chain(candidates: Sequence[Sequence[_Part]], end: int, price: float) -> _Rendering:
    """The parts, at most one a line, that follow one another from a target's start to its end, of the largest value."""
    best = {0: (0.0, None)}  # where a chain ends: its value, and the chain as (all parts but the last, the last)
    for parts in candidates:
        for part in parts:  # the order of _spans: no part sees a chain that this line has already joined
            if part.start not in best:
                continue
            value, chain = best[part.start]
            value += part.confidence * part.agreement - price * part.size - _TIE
            if part.end not in best or value > best[part.end][0] + _TIE / 2:
                best[part.end] = value, (chain, part)
    _, chain = best.get(end, (0.0, None))
    rendering: _Rendering = []
    while chain:
        chain, part = chain
        rendering.insert(0, part)
    return rendering


def _area(quad: np.ndarray) -> float:
    (x0, y0), (x1, y1) = (quad[2] - quad[0]).tolist(), (quad[3] - quad[1]).tolist()
    return abs(x0 * y1 - x1 * y0) / 2
