"""The plot of a measurement: the samples that each arm saves, and the cosine by denoising step."""

import math
from pathlib import Path

from scripts.credit.arms import CONTROLS

STEPS_OF = ("scalar", "own, alpha 0.5", "group, alpha 0.5", "residual, lam 0.5", "rolled, residual, lam 0.5")


def draw(result: dict, path: Path) -> None:
    """Left: each arm's samples saved with its interval. Right: cos(8) of a few arms by the noise level of the step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = list(result["arms"])[::-1]
    figures = [result["arms"][label] for label in labels]
    # intervals may be infinite, and need not hold the figure in their middle
    widest = 2 * max([row["saved"] for row in figures if math.isfinite(row["saved"])], default=1) + 1
    saved, lower, upper = ([min(row[name], widest) for row in figures] for name in ("saved", "saved_low", "saved_high"))
    low = [max(0.0, middle - end) for middle, end in zip(saved, lower, strict=True)]
    high = [max(0.0, end - middle) for middle, end in zip(saved, upper, strict=True)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 0.3 * len(labels) + 1.5), width_ratios=(3, 2))
    colours = ["#bbbbbb" if "," not in label or label.split(",")[0] in CONTROLS else "#2f6db3" for label in labels]
    left.barh(labels, saved, xerr=[low, high], color=colours, error_kw={"linewidth": 1})
    left.set_xlim(0, widest)
    left.axvline(1, color="black", linewidth=0.8)
    left.set_xlabel("samples saved, times the scalar's (95% over groups)")
    for label in STEPS_OF:
        if label in result["arms"]:
            steps = result["by_step"]
            right.plot(
                [step["sigma"] for step in steps], [step["arms"][label]["cos_8"] for step in steps], "o-", label=label
            )
    right.invert_xaxis()
    right.set_xlabel("noise level sigma of the step")
    right.set_ylabel("cosine of 8 groups with the reference")
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
