"""Rings where the trained reward rises while something else gets worse: the sign of a reward that is being fooled.

Evaluations sample the same prompts from the same noise, so two of them are compared prompt by prompt. For every watched
measure the latest evaluation is held against the one in which the measure was best:

    fall = measure(latest) - measure(best)          per prompt
    rise = trained reward(latest) - trained reward(best)

The alarm rings where mean(fall) < -3 * SE(fall), and at least 10% of the best mean, while mean(rise) > 2 * SE(rise). SE is the
standard error of a mean over prompts. The best of many evaluations is partly luck, which is why a fall needs the wider margin.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

FALL_ERRORS, RISE_ERRORS = 3.0, 2.0  # standard errors
SMALLEST_FALL = 0.1  # of the best mean
TRAINED = "reward"

Values = Mapping[str, Sequence[float | None]]  # by measure, one value per prompt; None where it could not be scored


@dataclass(frozen=True)
class Alarm:
    """A watched measure that fell while the trained reward rose. Means over the prompts that both evaluations scored."""

    measure: str
    since: int  # the epoch in which the measure was best
    best: float
    latest: float
    reward_before: float
    reward_now: float

    def __str__(self) -> str:
        return (
            f"ALARM: since epoch {self.since} the trained reward rose from {self.reward_before:.3f} to {self.reward_now:.3f}, "
            f"but {self.measure} fell from {self.best:.3f} to {self.latest:.3f}: look at the samples"
        )


def alarms(evaluations: Sequence[tuple[int, Values]], watched: Sequence[str]) -> list[Alarm]:
    """What rings at the latest evaluation.

    evaluations: (epoch, values) in order; the values hold TRAINED and the watched measures, of the same prompts in one order.
        An evaluation of another number of prompts is left out: a resumed run may have been allowed to change them.
    """
    if len(evaluations) < 2:
        return []
    latest = evaluations[-1][1]
    earlier = [(epoch, values) for epoch, values in evaluations[:-1] if len(values[TRAINED]) == len(latest[TRAINED])]
    ringing = []
    for measure in watched:
        known = [(epoch, values) for epoch, values in earlier if measure in values]
        if measure not in latest or not known:
            continue
        epoch, best = max(known, key=lambda each: _mean(each[1][measure]))
        before, now = _paired(best[measure], latest[measure])
        reward_before, reward_now = _paired(best[TRAINED], latest[TRAINED])
        if _fell(before, now) and _rose(reward_before, reward_now):
            means = (fmean(values) for values in (before, now, reward_before, reward_now))
            ringing.append(Alarm(measure, epoch, *means))
    return ringing


def _fell(before: Sequence[float], now: Sequence[float]) -> bool:
    mean, error = _mean_change(before, now)
    return mean < -FALL_ERRORS * error and mean <= -SMALLEST_FALL * abs(fmean(before))


def _rose(before: Sequence[float], now: Sequence[float]) -> bool:
    mean, error = _mean_change(before, now)
    return mean > RISE_ERRORS * error


def _mean_change(before: Sequence[float], now: Sequence[float]) -> tuple[float, float]:
    """The mean change and its standard error; of fewer than two prompts nothing can be said, so the error is infinite."""
    changes = [after - value for value, after in zip(before, now, strict=True)]
    if len(changes) < 2:
        return 0.0, math.inf
    return fmean(changes), stdev(changes) / math.sqrt(len(changes))


def _paired(one: Sequence[float | None], two: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """The values of the prompts that both evaluations scored."""
    pairs = [(a, b) for a, b in zip(one, two, strict=True) if a is not None and b is not None]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _mean(values: Sequence[float | None]) -> float:
    scored = [value for value in values if value is not None]
    return fmean(scored) if scored else -math.inf
