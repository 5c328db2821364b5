"""The two plots of the study: exact words by samples, and what each arm gained against what it changed beside."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scripts.study.runs import ARMS, ORACLE_ARMS
from scripts.study.statistics import bootstrap

COLOURS = {
    "scalar": "black",
    "own": "tab:orange",
    "group": "tab:green",
    "residual": "tab:red",
    "oracle": "tab:blue",
    "residual_oracle": "tab:purple",
    "rolled": "tab:brown",
    "residual_rolled": "tab:pink",
    "shuffled": "tab:olive",
    "inverted": "tab:cyan",
    "constant": "tab:gray",
}
CONTROLS = [arm for arm, fields in ARMS.items() if "advantage.control" in fields]  # maps that are wrong on purpose
LABEL_GAP = 0.042  # of the plot's height: the least distance of two labels


def draw_curves(curves: dict[str, tuple[Sequence[float], np.ndarray]], path: Path) -> None:
    """Held-out exact words by samples, a line per arm; left the maps, right those that are wrong on purpose.

    curves: {arm: (samples (evaluations,), exact words (seeds, evaluations))}. An upright line at the end is the 90% interval over seeds.
    """
    plt = _pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    titles = ("Maps (with the number of seeds)", "Maps that are wrong on purpose")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlabel="images sampled")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("exact words, held-out prompts")
    maps, controls = ([arm for arm in curves if (arm in CONTROLS) == wrong] for wrong in (False, True))
    shown = (maps, [arm for arm in maps if arm == "scalar"] + controls)
    for axes, arms in zip(panels, shown, strict=True):
        for arm in arms:
            samples, exact = curves[arm]
            style = {"color": COLOURS[arm], "linestyle": "--" if arm in ORACLE_ARMS else "-"}
            axes.plot(samples, exact.mean(axis=0), marker="o", markersize=4, linewidth=2, **style)
    for axes, arms in zip(panels, shown, strict=True):  # once the common height is known
        _label_ends(axes, max((curves[arm][0][-1] for arm in arms), default=1), {arm: curves[arm][1] for arm in arms})
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _label_ends(axes, last: float, exact: dict[str, np.ndarray]) -> None:
    """Each arm's interval, and its name, end and number of seeds, beside its line. No two lie on top of each other."""
    bottom, top = axes.get_ylim()
    floor = -np.inf
    for place, (arm, rows) in enumerate(sorted(exact.items(), key=lambda item: item[1][:, -1].mean())):
        mean, low, high = bootstrap(lambda ends: ends[:, -1].mean(), rows)
        if len(rows) > 1:
            axes.vlines(last * (1.03 + 0.025 * place), low, high, color=COLOURS[arm], linewidth=2)
        floor = max(mean, floor + LABEL_GAP * (top - bottom))
        words = f"{arm} {mean:.3f} ({len(rows)})"
        axes.text(last * (1.05 + 0.025 * len(exact)), floor, words, color=COLOURS[arm], va="center", fontsize=10)
    axes.set_xlim(-0.03 * last, 1.75 * last)
    axes.set_xticks(np.linspace(0, last, 4))


def draw_drift(drifts: dict[str, list[dict]], path: Path) -> None:
    """What was gained in words against what changed beside them: a small point per run, the arm's name at its mean.

    drifts: {arm: the drift of each of its runs}.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for arm, rows in drifts.items():
        gains, changes = ([row["gold"] - row["base_gold"] for row in rows], [row["off_text"] for row in rows])
        axes.scatter(gains, changes, color=COLOURS[arm], s=12, alpha=0.4, linewidths=0)
        marker = "X" if arm in CONTROLS else "o"
        axes.scatter(np.mean(gains), np.mean(changes), color=COLOURS[arm], s=70, marker=marker, label=arm)
    axes.set(
        xlabel="gain in words right on their signs, by the judge",
        ylabel="change off the text, levels of 255",
        title="Small: a run. Large: an arm's mean. A cross: maps that are wrong on purpose",
    )
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
