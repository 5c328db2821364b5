"""The plot of a measurement: the samples that each arm saves, and the cosine by denoising step."""

import math
from pathlib import Path

from scripts.credit.arms import CONTROLS, REFERENCE

REAL, CONTROL = "#2f6db3", "#8a8a8a"
STEPS_OF = {
    "scalar": {"color": "black"},
    "own, alpha 0.5": {"color": "tab:blue"},
    "group, alpha 0.5": {"color": "tab:green"},
    "residual, lam 0.5": {"color": "tab:red"},
    "rolled, residual, lam 0.5": {"color": CONTROL, "linestyle": "--"},
}


def draw(result: dict, path: Path) -> None:
    """Left: each arm's samples saved with its interval. Right: cos(8) of a few arms by the noise level of the step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    height = 0.3 * len(result["arms"]) + 1.5
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, height), width_ratios=(3, 2), layout="constrained")
    _draw_saved(left, result["arms"])
    _draw_steps(right, result["by_step"], [label for label in STEPS_OF if label in result["arms"]])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_saved(axes, arms: dict[str, dict]) -> None:
    """A dot and its interval per arm; an arrow where the interval has no upper end, or leaves the plot."""
    labels = [label for label in arms if label != REFERENCE][::-1]  # the reference saves 1, by definition
    known = math.isfinite(arms[REFERENCE]["saved"])  # else the scalar's own cosine is not above 0
    widest = 2 * max((arms[label]["saved"] for label in labels), default=1) + 1 if known else 1
    for place, label in enumerate(labels):
        saved, low, high = (arms[label][name] for name in ("saved", "saved_low", "saved_high"))
        colour = CONTROL if label.split(",")[0] in CONTROLS else REAL
        if known:
            axes.plot(saved, place, "o", color=colour)
            axes.plot([min(low, widest), min(high, widest)], [place, place], color=colour, linewidth=1.2, zorder=1)
            if high > widest:
                axes.plot(widest, place, ">", color=colour, clip_on=False)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlim=(0, widest), ylim=(-0.7, len(labels) - 0.3))
    axes.grid(axis="x", alpha=0.3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel(
        "samples saved, times the scalar's, with the 95% interval over groups\n(an arrow: no upper end in sight)"
    )
    if not known:
        words = "The scalar's cosine is not above 0:\nnothing can be said without more groups."
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center")
        axes.set_xticks([])


def _draw_steps(axes, by_step: list[dict], labels: list[str]) -> None:
    """A line per arm."""
    sigmas = [step["sigma"] for step in by_step]
    for label in labels:
        axes.plot(
            sigmas, [step["arms"][label]["cos_8"] for step in by_step], marker="o", label=label, **STEPS_OF[label]
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.invert_xaxis()  # a denoising step goes from a high level to a low one
    axes.set(xlabel="noise level sigma of the step", ylabel="cosine of 8 groups with the reference")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
