"""Draw the picture of the pipeline that the README shows: prompt -> images -> maps -> token advantages -> update.

    python scripts/draw_pipeline.py            # docs/images/pipeline-light.png, pipeline-dark.png, and narrow ones for phones

The picture shows real values: a real OCR engine reads three drawn signs, and the trainer computes the advantages.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1]))  # flow_grpo may not be installed: the checkout is enough

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import FancyArrowPatch  # noqa: E402

from flow_grpo.map_overlay import overlay  # noqa: E402
from flow_grpo.reward_map import pool_to_tokens  # noqa: E402
from flow_grpo.scorers import make_scorer  # noqa: E402
from flow_grpo.training.advantages import group_advantages, token_advantages  # noqa: E402

PROMPT = 'a red circle and a blue sign that says "HUT"'
WORDS = ("HUT", "HUX", "KAX")
TOKEN_GRID = (16, 16)
THEMES = {"light": ("#1b1b1b", "#5c5c5c"), "dark": ("#ededed", "#a8a8a8")}  # of text, of what is less important


def draw_sign(word: str) -> np.ndarray:
    """A scene (128, 128, 3) uint8 whose sign says the word."""
    image = Image.new("RGB", (128, 128), (238, 232, 213))
    pen = ImageDraw.Draw(image)
    pen.ellipse((40, 10, 88, 58), fill=(214, 48, 49))
    pen.rounded_rectangle((8, 76, 120, 116), 6, fill=(40, 84, 205))
    pen.text((64, 96), word, fill="white", font=ImageFont.load_default(size=30), anchor="mm")
    return np.array(image)


def stages() -> tuple[list[np.ndarray], list[np.ndarray], torch.Tensor, torch.Tensor]:
    """Images, their maps laid over them, rewards (B,), and token advantages (B, rows, columns)."""
    signs = [draw_sign(word) for word in WORDS]
    images = torch.from_numpy(np.stack(signs)).permute(0, 3, 1, 2).float() / 255
    score = make_scorer("ocr_map", engine="rapidocr")(images, [PROMPT] * len(signs))
    advantages = group_advantages(score.reward, torch.zeros(len(signs), dtype=torch.long))
    token_maps = pool_to_tokens(score.reward_map, TOKEN_GRID)
    spread = token_advantages(advantages, token_maps, "weight", score.map_kind)
    overlays = [overlay(sign, each.numpy()) for sign, each in zip(signs, score.reward_map)]
    return signs, overlays, score.reward, spread.reshape(-1, *TOKEN_GRID)


def draw(path: Path, theme: str) -> None:
    """The whole pipeline from left to right."""
    ink, soft = THEMES[theme]
    signs, overlays, rewards, spread = stages()
    figure = plt.figure(figsize=(12, 4.6))
    heads = ("prompt", "a group of images", "reward maps", "token advantages", "update")
    lefts = (0.015, 0.215, 0.42, 0.625, 0.83)
    maps, credit = "blue bad, white neutral, red good", "mode weight: blue blame, red praise"
    notes = ("", "sampled with an SDE", maps, credit, "")
    for head, left, note in zip(heads, lefts, notes):
        figure.text(left, 0.93, head, color=ink, fontsize=14, weight="bold")
        figure.text(left, 0.875, note, color=soft, fontsize=9)
    figure.text(
        lefts[0], 0.5, PROMPT.replace(" and", "\nand").replace(" that", "\nthat"), color=ink, fontsize=12, va="center"
    )
    limit = spread.abs().max().item()
    for row in range(len(signs)):
        bottom = 0.585 - 0.275 * row
        panels = ((1, signs[row], {}), (2, overlays[row], {}))
        panels += ((3, spread[row], {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}),)
        for column, picture, options in panels:
            axes = figure.add_axes((lefts[column], bottom, 0.1, 0.255))
            axes.imshow(picture, interpolation="nearest", **options)
            axes.set_axis_off()
        value, mean = rewards[row].item(), spread[row].mean().item()
        figure.text(lefts[2] + 0.105, bottom + 0.11, f"reward\n{value:.2f}", color=ink, fontsize=11, va="center")
        figure.text(lefts[3] + 0.105, bottom + 0.11, f"mean\n{mean:+.2f}", color=ink, fontsize=11, va="center")
    update = "each token's step\nbecomes more likely\nwhere its advantage\nis positive, less\nwhere it is negative"
    figure.text(lefts[4], 0.5, update, color=ink, fontsize=12, va="center")
    for start in (0.175, 0.375, 0.585, 0.79):
        arrow = FancyArrowPatch((start, 0.5), (start + 0.03, 0.5), transform=figure.transFigure)
        arrow.set(arrowstyle="-|>", mutation_scale=16, color=soft)
        figure.add_artist(arrow)
    figure.savefig(path, dpi=150, transparent=True)
    plt.close(figure)


def draw_narrow(path: Path, theme: str) -> None:
    """Images, maps and token advantages alone, in large letters."""
    ink, soft = THEMES[theme]
    signs, overlays, rewards, spread = stages()
    figure = plt.figure(figsize=(5, 6))
    figure.text(0.01, 0.97, PROMPT, color=ink, fontsize=12, va="top")
    limit = spread.abs().max().item()
    heads = ("images", "reward maps", "advantages")
    notes = ("of one prompt", "blue bad, red good", "blue blame, red praise")
    for column, (head, note) in enumerate(zip(heads, notes)):
        left = 0.01 + 0.335 * column
        figure.text(left, 0.905, head, color=ink, fontsize=12, weight="bold", va="center")
        figure.text(left, 0.872, note, color=soft, fontsize=9.5, va="center")
        for row in range(len(signs)):
            bottom = 0.61 - 0.285 * row
            axes = figure.add_axes((left, bottom, 0.29, 0.24))
            picture = (signs, overlays, spread)[column][row]
            axes.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            axes.set_axis_off()
            label = ("", f"reward {rewards[row].item():.2f}", f"mean {spread[row].mean().item():+.2f}")[column]
            figure.text(left, bottom - 0.022, label, color=ink, fontsize=11, va="center")
    figure.savefig(path, dpi=150, transparent=True)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), metavar="FOLDER")
    args = parser.parse_args()
    if not args.out.is_dir():
        parser.error(f"--out {args.out} is not a folder; make it first")
    for theme in THEMES:
        for name, drawn in (("pipeline", draw), ("pipeline-narrow", draw_narrow)):
            path = args.out / f"{name}-{theme}.png"
            drawn(path, theme)
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
