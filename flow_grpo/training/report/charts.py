"""Makes the charts of a report from a run's metrics: which lines a chart has, and what their spread is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Line:
    """One line of a chart: its points, and the spread around each point if there is one.

    x: epochs. y: values. low, high: the ends of the spread at each point; both are empty where there is no spread.
    """

    label: str
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Chart:
    title: str
    note: str
    lines: list[Line]


# The title, what a reader should know, and patterns of the metrics. A metric goes to the first chart that matches.
CHARTS = (
    (
        "Reward",
        "rollout: the band is one standard deviation of the epoch's images",
        ("rollout/reward_mean", "eval/reward"),
    ),
    ("Watched, not trained on", "scorers that only evaluations run", ("eval/gold/*",)),
    ("Alarms", "1 where the trained reward rose while another measure fell beyond its noise", ("alarm/*",)),
    ("Signals of reward hacking", "text that grows on an emptier scene", ("*signal/*", "*/text_area")),
    ("Lines of text", "read per image", ("*/num_lines",)),
    ("Held-out details", "what scorers measured on the test prompts", ("eval/*/*",)),
    ("Each reward by itself", "training prompts", ("rollout/*_map", "rollout/*score", "rollout/ocr")),
    ("Where maps speak", "share of tokens with evidence, and how evenly it lies", ("map/*",)),
    ("Advantages", "after the clamp", ("rollout/advantage_*", "rollout/zero_advantage_share", "credit/*")),
    ("Ratio", "how far from 1; the first of a run starts at exactly 1", ("update/ratio_std", "update/*deviation*")),
    ("Mean ratio", "over the images of an epoch", ("update/ratio_mean",)),
    (
        "Shares of an update",
        "what is clipped; gradients that AdamW's epsilon hides",
        ("update/clip_fraction_*", "update/grad_under_epsilon_share"),
    ),
    ("KL", "to the base model, where beta is not 0", ("update/kl*",)),
    ("Approximate KL", "to the policy that sampled", ("update/approx_kl",)),
    ("Gradient", "its norm, before it is cut", ("update/grad_norm",)),
    ("Gradient of an element", "its root mean square, before the cut", ("update/grad_rms",)),
    ("Loss scale", "of fp16", ("update/loss_scale",)),
    ("Seconds by stage", "of one epoch", ("time/*",)),
)
SPREAD = {"rollout/reward_mean": "rollout/reward_std"}
MAX_LINES = 8


def charts(rows: Rows) -> list[Chart]:
    """The charts of one run. A chart without numbers is left out; a chart with too many lines is split."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "epoch"))
    made, taken = [], set()
    for title, note, patterns in CHARTS:
        found = [
            name for name in names if name not in taken and any(fnmatchcase(name, pattern) for pattern in patterns)
        ]
        taken |= set(found)
        for start in range(0, len(found), MAX_LINES):
            part = f" ({start // MAX_LINES + 1})" if len(found) > MAX_LINES else ""
            lines = [line(rows, name, SPREAD.get(name)) for name in found[start : start + MAX_LINES]]
            made.append(Chart(title + part, note, lines))
    return made


def line(rows: Rows, name: str, spread: str | None = None) -> Line:
    """One metric over the epochs in which it is a number. spread: the name of the metric that is its standard deviation."""
    own = [row for row in rows if math.isfinite(row.get(name, math.nan))]
    # A rollout's metrics stand at the middle of its epoch, since the weights change at its end.
    middle = 0.0 if name.startswith(("eval/", "alarm/")) else 0.5
    y = [row[name] for row in own]
    deviations = [row.get(spread, 0.0) for row in own] if spread else []
    return Line(
        label=name,
        x=[row["epoch"] + middle for row in own],
        y=y,
        low=[value - deviation for value, deviation in zip(y, deviations)],
        high=[value + deviation for value, deviation in zip(y, deviations)],
    )


def compared(runs: Mapping[str, Rows], names: Sequence[str]) -> list[Chart]:
    """One chart per metric, with a line per run. runs: {label: rows}.

    Runs whose labels differ only in the seed at the end ("ocr seed 1", "ocr seed 2") become one line: their mean, with the
    smallest and the largest value as the spread.
    """
    groups: dict[str, list[Rows]] = {}
    for label, rows in runs.items():
        groups.setdefault(label.partition(" seed ")[0], []).append(rows)
    made = []
    for name in names:
        lines = [_mean_line(label, [line(rows, name) for rows in group]) for label, group in groups.items()]
        lines = [each for each in lines if each.x]
        if lines:
            made.append(
                Chart(name, "a line per run; of several seeds the mean, from the smallest to the largest", lines)
            )
    return made


def _mean_line(label: str, lines: Sequence[Line]) -> Line:
    """The mean of several lines, at the epochs that all of them have."""
    columns = [dict(zip(each.x, each.y)) for each in lines if each.x]
    shared = sorted(set.intersection(*map(set, columns))) if columns else []
    values = [[column[x] for column in columns] for x in shared]
    several = len(columns) > 1
    return Line(
        label=f"{label} ({len(columns)} seeds)" if several else label,
        x=shared,
        y=[sum(each) / len(each) for each in values],
        low=[min(each) for each in values] if several else [],
        high=[max(each) for each in values] if several else [],
    )
