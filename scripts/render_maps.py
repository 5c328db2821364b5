"""Draw reward maps over images: one image as a picture, a folder as a page.

python scripts/render_maps.py docs/images/sign.png 'a blue sign that says "OPEN"' --scorer ocr_map clip_gradcam \\
    --model models/tiny-clip --out maps.png
python scripts/render_maps.py samples/ --scorer clip_decomposition --out maps.html
python scripts/render_maps.py sign.png "a sign" --scorer clip_gradcam --option clip_gradcam.block=-2 --out block.png

The prompts of a folder are the prompt given, or its prompts.txt (one line per image, in the order of the names, with
numbers sorted by value), or a NAME.txt beside each image.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package is not installed: it belongs to the checkout

from maps_page import Row, page  # noqa: E402

from flow_grpo.map_overlay import Panel, figure  # noqa: E402
from flow_grpo.score import Scorer, to_levels  # noqa: E402
from flow_grpo.scorers import make_scorer, scorer_names  # noqa: E402

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def find_images(path: Path) -> list[Path]:
    """The image itself, or the images of a folder in the order of their names. Raises ValueError where there is none."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; give an image or a folder of images")
    if path.is_file():
        return [path]
    found = [each for each in path.iterdir() if each.suffix.lower() in SUFFIXES]
    if not found:
        raise ValueError(f"{path} holds no image; wanted {', '.join(sorted(SUFFIXES))}")
    return sorted(found, key=_by_value)


def find_prompts(images: Sequence[Path], prompt: str | None) -> list[str]:
    """One prompt per image, as the file's first docstring says. Raises ValueError where one is missing."""
    if prompt is not None:
        return [prompt] * len(images)
    listed = images[0].parent / "prompts.txt"
    if listed.exists():
        prompts = listed.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
        if len(prompts) != len(images):
            raise ValueError(f"{listed} has {len(prompts)} lines for {len(images)} images; give one line an image")
        return prompts
    captions = [image.with_suffix(".txt") for image in images]
    missing = [caption for caption in captions if not caption.exists()]
    if missing:
        raise ValueError(f"no prompt for {images[0]}: give PROMPT, or write {listed} or {missing[0]}")
    return [caption.read_text(encoding="utf-8-sig").strip() for caption in captions]


def make_scorers(names: Sequence[str], options: Sequence[str], model: str | None, device: str) -> dict[str, Scorer]:
    """Scorers by name. options: "SCORER.NAME=JSON" each. model: for those that are CLIP. Raises ValueError as make_scorer."""
    by_scorer: dict[str, dict[str, Any]] = {name: {} for name in names}
    if model is not None:
        clip = [name for name in names if name.startswith("clip")]
        if not clip:
            raise ValueError(f"--model is for the CLIP scorers, and {', '.join(names)} has none; leave it out")
        by_scorer |= {name: {"model": model} for name in clip}
    for option in options:
        key, equals, text = option.partition("=")
        scorer, dot, name = key.rpartition(".")
        if not (equals and dot) or scorer not in by_scorer:
            raise ValueError(
                f"--option {option!r} must be SCORER.NAME=JSON with a scorer of {', '.join(names)}; "
                "for instance ocr_map.mask_sigma=0"
            )
        try:
            by_scorer[scorer][name] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"--option {option!r}: {text} is not JSON; a string wants quotes: '\"...\"'") from error
    return {name: make_scorer(name, device, **chosen) for name, chosen in by_scorer.items()}


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as its camera says; a transparent image as it shows on white, or, where it is light, on black.

    Raises ValueError for a file that is no whole image.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if not image.has_transparency_data:
                return to_levels(image)
            picture = image.convert("RGBA")
    except (OSError, SyntaxError) as error:  # Pillow raises either for a broken file
        raise ValueError(f"no image that can be read ({error}); replace the file or take it away") from error
    levels, alpha = np.array(picture)[..., :3], np.array(picture)[..., 3]
    light = alpha.any() and levels[alpha > 0].mean() > 191  # white letters would be lost on white
    ground = Image.new("RGBA", picture.size, "black" if light else "white")
    return np.array(Image.alpha_composite(ground, picture).convert("RGB"))


def make_panels(image: np.ndarray, prompt: str, scorers: Mapping[str, Scorer]) -> list[Panel]:
    """Each scorer's map of an image (H, W, 3) uint8. Raises ValueError for a scorer that has none."""
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
    panels = []
    for name, scorer in scorers.items():
        score = scorer(pixels, [prompt])
        if score.reward_map is None:
            raise ValueError(f"scorer {name!r} has no map to draw, only a score: {score.reward.item():.3f}")
        reward_map = score.reward_map[0].float().cpu().numpy()
        read = score.read and score.read[0]
        panels.append(Panel(name, score.reward.item(), reward_map, score.map_kind, score.map_valid.item(), read))
    return panels


def render(args: argparse.Namespace) -> None:
    images = find_images(args.images)
    suffix = args.out.suffix.lower()
    if suffix not in (".png", ".html") or (suffix == ".png" and args.images.is_dir()):
        raise ValueError(f"--out {args.out} must end in .png (of one image) or .html (of an image or a folder)")
    if not args.out.parent.is_dir():
        raise ValueError(f"--out {args.out}: there is no folder {args.out.parent}; make it first")
    prompts = find_prompts(images, args.prompt)
    scorers = make_scorers(scorer_names(args.scorer), args.option, args.model, args.device)
    rows = []
    for path, prompt in zip(tqdm(images, desc="images"), prompts, strict=True):
        try:
            image = read_image(path)
            rows.append(Row(path.name, prompt, image, make_panels(image, prompt, scorers)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if suffix == ".png":
        figure(rows[0].image, prompts[0], rows[0].panels).save(args.out)
    else:
        args.out.write_text(page(rows, f"Reward maps of {args.images.name}"), encoding="utf-8")
    print(f"wrote {args.out}")


def _by_value(path: Path) -> list:
    """Sorts 2.png before 10.png."""
    return [(not part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", path.name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="of every image; default: the folder's own")
    parser.add_argument(
        "--scorer", required=True, nargs="+", metavar="NAME", help="one or several, as make_scorer knows them"
    )
    parser.add_argument(
        "--model", help="of the CLIP scorers: hub id or folder, such as models/tiny-clip; default: ViT-L/14 of OpenAI"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="SCORER.NAME=JSON", help="an option of a scorer; repeatable"
    )
    parser.add_argument("--device", default="cpu", help="where CLIP runs")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".png or .html")
    try:
        render(parser.parse_args())
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"render_maps.py: {error}")


if __name__ == "__main__":
    main()
