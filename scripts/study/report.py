"""Compare the arms of the results file: tables in Markdown, and two plots."""

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flow_grpo.training.json_lines import read_rows
from scripts.study.launch import RESULTS
from scripts.study.picture import draw_curves, draw_drift
from scripts.study.runs import ARMS, ORACLE_ARMS
from scripts.study.statistics import area_under, bootstrap, samples_to

SWEEP_SEED = 0  # chooses each arm's learning rate, and counts in no comparison
COLUMNS = (
    "arm",
    "rate",
    "seeds",
    "exact at the end",
    "more than scalar, by seed",
    "mean exact",
    "samples to level",
    "times fewer than scalar, at least",
)
DRIFT = {"off_text": "off the text, levels", "shape_right": "shape right", "gold": "word right on its sign"}


def best_rates(rows: Sequence[dict]) -> dict[str, float]:
    """Each arm's learning rate: of those that its other seeds were run at, the best of the sweep; without one, that of most runs."""
    rates = {}
    for arm in {row["arm"] for row in rows}:
        counts = Counter(row["learning_rate"] for row in rows if row["arm"] == arm and row["seed"] != SWEEP_SEED)
        swept = _sweep(rows, arm)
        choices = {rate: accuracy for rate, accuracy in swept.items() if rate in counts} or counts or swept
        rates[arm] = max(choices, key=choices.get)
    return rates


def sweep_table(rows: Sequence[dict]) -> str:
    """The mean exact words over the run, of the sweep's seed: an arm a line, a learning rate a column."""
    swept = {arm: _sweep(rows, arm) for arm in ARMS}
    rates = sorted({rate for of_arm in swept.values() for rate in of_arm})
    lines = [
        f"| sweep, seed {SWEEP_SEED} | {' | '.join(f'{rate:g}' for rate in rates)} |",
        "|---" * (len(rates) + 1) + "|",
    ]
    for arm, of_arm in swept.items():
        if of_arm:
            lines.append(f"| {arm} | {' | '.join(f'{of_arm[r]:.3f}' if r in of_arm else '' for r in rates)} |")
    return "\n".join(lines)


def _sweep(rows: Sequence[dict], arm: str) -> dict[float, float]:
    """{learning rate: mean exact words over the run} of an arm's runs of the sweep."""
    own = [row for row in rows if (row["arm"], row["seed"]) == (arm, SWEEP_SEED)]
    return {row["learning_rate"]: area_under(*_curve(row)) for row in own}


def compared(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Each arm's runs at its rate, by seed, without the sweep's; in the order of ARMS."""
    rates = best_rates(rows)
    kept = {arm: [r for r in rows if (r["arm"], r["learning_rate"]) == (arm, rates.get(arm))] for arm in ARMS}
    kept = {
        arm: sorted((r for r in own if r["seed"] != SWEEP_SEED), key=lambda r: r["seed"]) for arm, own in kept.items()
    }
    return {arm: own for arm, own in kept.items() if own}


def half_way(arms: dict[str, list[dict]]) -> float:
    """The level that the arms are timed to: half-way from where the seeds start to the best mean end; an oracle's is not one."""
    ends = {arm: np.mean([_curve(r)[1][-1] for r in own]) for arm, own in arms.items() if arm not in ORACLE_ARMS}
    starts = {r["seed"]: _curve(r)[1][0] for own in arms.values() for r in own}  # the same in all arms
    return float((np.mean(list(starts.values())) + max(ends.values())) / 2)


def table(arms: dict[str, list[dict]], level: float) -> str:
    """One line an arm; intervals are 90%, over seeds."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(_cells(arm, own, arms.get('scalar', []), level))} |" for arm, own in arms.items()]
    return "\n".join(lines)


def _cells(arm: str, own: list[dict], scalar: list[dict], level: float) -> list[str]:
    samples, accuracies = _curve(own[0])[0], _accuracies(own)  # (evaluations,), (seeds, evaluations)

    def crossing(rows: np.ndarray) -> float:
        return samples_to(samples, rows.mean(axis=0), level)

    def fewer(pairs: np.ndarray) -> float:  # (seeds, 2, evaluations): the scalar's and the arm's
        return _times_fewer(crossing(pairs[:, 0]), crossing(pairs[:, 1]), samples[-1])

    pairs = _paired(own, scalar)
    return [
        *(arm, f"{own[0]['learning_rate']:g}", str(len(own))),
        _interval(bootstrap(lambda rows: rows[:, -1].mean(), accuracies)),
        _interval(bootstrap(lambda pairs: (pairs[:, 1, -1] - pairs[:, 0, -1]).mean(), pairs)) if len(pairs) else "",
        _interval(bootstrap(lambda rows: area_under(samples, rows.mean(axis=0)), accuracies)),
        _interval(bootstrap(crossing, accuracies), digits=0),
        _interval(bootstrap(fewer, pairs), digits=1) if len(pairs) else "",
    ]


def _paired(own: list[dict], scalar: list[dict]) -> np.ndarray:
    """(seeds, 2, evaluations): the scalar's and the arm's run of each seed that both have, which share prompts and noise."""
    of_seed = {row["seed"]: row for row in scalar}
    pairs = [_accuracies([of_seed[row["seed"]], row]) for row in own if row["seed"] in of_seed]
    return np.array(pairs)


def drift_table(arms: dict[str, list[dict]]) -> str:
    """One line an arm, of its runs whose drift was measured."""
    lines = [f"| arm | seeds | {' | '.join(DRIFT.values())} |", "|---|---|---|---|---|"]
    drifts = {arm: [row["drift"] for row in own if row["drift"]] for arm, own in arms.items()}
    base = next(drift for own in drifts.values() for drift in own)  # whose images do not depend on the run
    lines.append(f"| base | | 0 | {base['base_shape_right']:.3f} | {base['base_gold']:.3f} |")
    for arm, own in drifts.items():
        if own:
            intervals = {name: bootstrap(np.mean, np.array([drift[name] for drift in own])) for name in DRIFT}
            cells = [_interval(each, digits=1 if name == "off_text" else 3) for name, each in intervals.items()]
            lines.append(f"| {arm} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _curve(row: dict) -> tuple[list[float], list[float]]:
    samples, exact, _ = zip(*row["curve"])
    return list(samples), list(exact)


def _accuracies(rows: Sequence[dict]) -> np.ndarray:
    """(seeds, evaluations). Raises ValueError where the runs were not evaluated at the same samples."""
    if len({tuple(_curve(row)[0]) for row in rows}) > 1:
        raise ValueError("the results hold runs of several sizes; keep one size a file, by --results")
    return np.array([_curve(row)[1] for row in rows])


def _times_fewer(scalar: float, arm: float, last: float) -> float:
    """The scalar's samples to the level over the arm's. A scalar that never came counts as if it had come at the last sample.

    Two that never come are equal.
    """
    return 1.0 if math.isinf(scalar) and math.isinf(arm) else min(scalar, last) / arm


def _interval(value_low_high: tuple[float, float, float], digits: int = 3) -> str:
    value, low, high = (f"{x:.{digits}f}".replace("inf", "never") for x in value_low_high)
    return value if low == "nan" else f"{value} ({low} to {high})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--level", type=float, help="exact words that the arms are timed to; default: half the best gain"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    rows = read_rows(args.results)
    arms = compared(rows)
    if not arms:
        raise SystemExit(f"{args.results} has no finished run of a seed other than {SWEEP_SEED}; do `run` first")
    level = half_way(arms) if args.level is None else args.level
    text = f"Level: {level:.3f}\n\n{table(arms, level)}\n\n{drift_table(arms)}\n\n{sweep_table(rows)}\n"
    print(text)
    folder = args.results.parent
    (folder / "tables.md").write_text(text, encoding="utf-8")
    draw_curves({arm: (_curve(own[0])[0], _accuracies(own)) for arm, own in arms.items()}, folder / "curves.png")
    drifts = {arm: [row["drift"] for row in own if row["drift"]] for arm, own in arms.items()}
    draw_drift({arm: rows for arm, rows in drifts.items() if rows}, folder / "drift.png")
