"""What the OCR reward sees: drawn words, degraded, with one letter broken, or small, as Markdown tables.

python scripts/measure_ocr.py                      # everything, in three minutes on one core
python scripts/measure_ocr.py degradations         # how reward, similarity and detection fall
python scripts/measure_ocr.py characters           # whether the broken letter is blamed, with and without per_character
python scripts/measure_ocr.py sides                # small letters, and an engine whose detector sees a smaller image
python scripts/measure_ocr.py texts                # texts of a data set's prompts, in one line, two, and a column
python scripts/measure_ocr.py --language zh        # the same for simplified Chinese
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package is not installed: it belongs to the checkout

from flow_grpo.ocr_map_scorer import OcrMapScorer  # noqa: E402
from flow_grpo.reward_map import gaussian_blur, pool_to_tokens  # noqa: E402
from flow_grpo.training.advantages import token_advantages  # noqa: E402
from scripts.audit.letters import LATIN, Letters, chinese, texts_of  # noqa: E402

TOKEN = 8  # pixels
TIE = 0.01  # of the map, between letters of which neither is lower


@dataclass(frozen=True)
class DrawnWord:
    """image: (3, size, size) float in [0, 1], black on white. letters: where each stands, (left, top, right, bottom)."""

    text: str
    image: Tensor
    letters: list[tuple[int, int, int, int]]


def draw_word(text: str, size: int, font_size: float | None = None, letters: Letters = LATIN) -> DrawnWord:
    """A word in the middle of an image, in a font of a fifth of its size if not told otherwise."""
    font = letters.font(font_size or size / 5)
    image = Image.new("RGB", (size, size), "white")
    canvas, left = ImageDraw.Draw(image), (size - font.getlength(text)) / 2
    canvas.text((left, size / 2), text, fill="black", font=font, anchor="lm")
    _, top, _, bottom = canvas.textbbox((left, size / 2), text, font=font, anchor="lm")
    borders = [round(left + font.getlength(text[:i])) for i in range(len(text) + 1)]
    boxes = [(start, int(top), end, int(bottom)) for start, end in zip(borders, borders[1:])]
    return DrawnWord(text, torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255, boxes)


def blur(image: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
    return gaussian_blur(image, sigma)


def noise(image: Tensor, std: float, rng: torch.Generator) -> Tensor:
    return (image + std * torch.randn(image.shape, generator=rng)).clamp(0, 1)


def warp(image: Tensor, shift: float, rng: torch.Generator) -> Tensor:
    """Every pixel from elsewhere: a smooth random field, `shift` pixels in the root mean square."""
    _, height, width = image.shape
    field = gaussian_blur(torch.randn(2, height, width, generator=rng), height / 40)
    field = field / field.square().mean().sqrt() * shift * 2 / height  # grid_sample's side is 2
    upright = torch.stack(
        torch.meshgrid(torch.linspace(-1, 1, width), torch.linspace(-1, 1, height), indexing="xy"), -1
    )
    grid = upright + field.permute(1, 2, 0)
    return F.grid_sample(image[None], grid[None], padding_mode="border", align_corners=True)[0]


def fade(image: Tensor, contrast: float, rng: torch.Generator) -> Tensor:
    return 0.5 + (image - 0.5) * contrast


# name: (how, what its level is, the levels from none to the strongest); pixels are those of an image of 64, and scale with it
DEGRADATIONS: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], str, tuple[float, ...]]] = {
    "blur": (blur, "sigma in pixels", (0, 1.5, 2, 2.5, 3, 4)),
    "noise": (noise, "std", (0, 0.2, 0.3, 0.4, 0.5, 0.6)),
    "warp": (warp, "rms shift in pixels", (0, 0.5, 1, 1.5, 2, 3)),
    "contrast": (fade, "share kept", (1, 0.1, 0.05, 0.04, 0.03, 0.02)),
}


def measure_degradations(letters: Letters, size: int, seed: int, kinds=tuple(DEGRADATIONS)) -> Iterator[dict]:
    """For each kind and level: the words' mean reward, similarity, and the share of them detected."""
    scorer, prompts = OcrMapScorer(), [prompt_of(word) for word in letters.words]
    images = [draw_word(word, size, letters=letters).image for word in letters.words]
    for kind in kinds:
        degrade, unit, levels = DEGRADATIONS[kind]
        for level in levels:
            rng = torch.Generator().manual_seed(seed)  # at every level the same noise, only stronger
            strength = level * size / 64 if "pixels" in unit else level
            score = scorer(torch.stack([degrade(image, strength, rng) for image in images]), prompts)
            yield {
                "degraded by": f"{kind}, {unit}",
                "level": f"{level:g}",
                "reward": score.reward.mean().item(),
                "similarity": score.details["similarity"].mean().item(),
                "detected": (score.details["num_lines"] > 0).float().mean().item(),
            }


def break_letter(word: DrawnWord, index: int, way: str, rng: np.random.Generator, letters: Letters = LATIN) -> Tensor:
    """The word's image (3, size, size) with one letter broken in one of WAYS."""
    left, top, right, bottom = word.letters[index]
    height = bottom - top
    image = word.image.clone()
    letter = image[:, top:bottom, left:right]  # a view
    if way == "another letter":
        other = rng.choice([char for char in letters.others if char != word.text[index]])
        text = word.text[:index] + other + word.text[index + 1 :]
        return draw_word(text, image.shape[1], letters=letters).image
    if way == "lower half gone":
        letter[:, height // 2 :] = 1
    elif way == "blurred":
        letter[:] = gaussian_blur(letter, height / 5)
    elif way == "struck out":
        letter[:, round(height * 0.4) : round(height * 0.6)] = 0
    elif way == "gone":
        letter[:] = 1
    return image


WAYS = ("another letter", "lower half gone", "blurred", "struck out", "gone")


def measure_characters(letters: Letters, size: int, seed: int) -> Iterator[dict]:
    """For each way: one letter of each word broken, and whether the map says which.

    read right: how often OCR reads the word as if nothing were broken. found: how often the broken letter has the lowest reward
    of all, shared where several are within TIE; found, read right: of those words alone. blame: the mean advantage of the
    broken letter's tokens, and of the other letters', in an image whose advantage is -1 (mode "weight", alpha 0.5).
    A map that cannot tell the letters of a word of five apart finds 0.2 and blames all alike.
    """
    scorers = {"whole box": OcrMapScorer(), "per character": OcrMapScorer(per_character=True)}
    drawn = [draw_word(word, size, letters=letters) for word in letters.words]
    for way in WAYS:
        rng = np.random.default_rng(seed)
        broken = [int(rng.integers(len(word))) for word in letters.words]
        images = torch.stack([break_letter(*pair, way, rng, letters) for pair in zip(drawn, broken)])
        for name, scorer in scorers.items():
            score = scorer(images, [prompt_of(word) for word in letters.words])
            rewards, blame = (
                [letter_means(*pair) for pair in zip(maps, drawn)]
                for maps in (score.reward_map, spread_blame(score.reward_map))
            )
            finds = np.array([found(*pair) for pair in zip(rewards, broken)])
            right = score.details["exact"].numpy() == 1
            yield {
                "broken letter": way,
                "map": name,
                "similarity": score.details["similarity"].mean().item(),
                "read right": right.mean(),
                "found": finds.mean(),
                "found, read right": finds[right].mean() if right.any() else "",
                "blame, broken": np.mean([means[i] for means, i in zip(blame, broken)]),
                "blame, others": np.mean([np.delete(means, i).mean() for means, i in zip(blame, broken)]),
            }


def letter_means(values: Tensor, word: DrawnWord) -> np.ndarray:
    """The mean of a map (H, W) in the middle half of each letter's place, away from the soft edges of the box."""
    means = []
    for left, top, right, bottom in word.letters:
        x, y = (right - left) / 4, (bottom - top) / 4
        means.append(values[round(top + y) : round(bottom - y), round(left + x) : round(right - x)].mean().item())
    return np.array(means)


def found(means: np.ndarray, broken: int) -> float:
    lowest = means <= means.min() + TIE
    return float(lowest[broken] / lowest.sum())


def spread_blame(reward_map: Tensor) -> Tensor:
    """Each pixel's token's advantage, (B, H, W), for images whose advantage is -1."""
    batch, height, width = reward_map.shape
    grid = (height // TOKEN, width // TOKEN)
    tokens = token_advantages(-torch.ones(batch), pool_to_tokens(reward_map, grid), "weight", "reward")
    return tokens.view(batch, *grid).repeat_interleave(TOKEN, dim=1).repeat_interleave(TOKEN, dim=2)


FONT_SIZES = (8, 12, 20, 40)
SIDES = (960, 448, 384, 320, 256)


def measure_sides(letters: Letters, size: int, seed: int) -> Iterator[dict]:
    """For each size of the letters, clean, blurred and in noise: the mean reward of RapidOCR with each max_side.

    On images of 512 pixels whatever `size` is: smaller ones are not shrunk.
    """
    scorers = {side: OcrMapScorer(engine_options={"max_side": side}) for side in SIDES}
    prompts = [prompt_of(word) for word in letters.words]
    for font_size in FONT_SIZES:
        clean = torch.stack([draw_word(word, 512, font_size, letters).image for word in letters.words])
        rng = torch.Generator().manual_seed(seed)
        variants = {
            "clean": clean,
            "blurred by a seventh": torch.stack([blur(image, font_size / 7, rng) for image in clean]),
            "noise of 0.2": torch.stack([noise(image, 0.2, rng) for image in clean]),
        }
        for name, images in variants.items():
            row = {"font, pixels": str(font_size), "letters": name}
            yield row | {
                f"side {side}": scorer(images, prompts).reward.mean().item() for side, scorer in scorers.items()
            }


TEXTS = 40
# A text of several parts: how its lines are laid out.
LAYOUTS = ("one line", "two lines", "one column")


def measure_texts(letters: Letters, size: int, seed: int) -> Iterator[dict]:
    """Texts as the data set's prompts have them, digits and punctuation included, in three layouts and both normalisations.

    On images of 256 pixels whatever `size` is. A column has one character below the other.
    """
    texts = texts_of(letters, TEXTS)
    prompts = [prompt_of(text.replace('"', "")) for text in texts]
    for layout in LAYOUTS:
        images = torch.stack([draw_text(text, layout, 256, letters) for text in texts])
        for normalisation in ("flow_grpo", "unicode"):
            score = OcrMapScorer(normalisation=normalisation)(images, prompts)
            figures = {name: score.details[name].mean().item() for name in ("reward", "similarity", "exact")}
            yield {"layout": layout, "normalisation": normalisation} | figures


def draw_text(text: str, layout: str, size: int, letters: Letters) -> Tensor:
    """A text in the middle of an image (3, size, size), as large as fits, up to an eighth of the image."""
    if layout == "one column":
        lines = list(text.replace(" ", ""))
    elif layout == "two lines":
        cut = text.find(" ", len(text) // 3) + 1 or (len(text) + 1) // 2
        lines = [text[:cut].strip(), text[cut:].strip()]
    else:
        lines = [text]
    widest = max(letters.font(100).getlength(line) for line in lines) / 100  # in font sizes
    font_size = min(size / 8, 0.9 * size / max(widest, 1.2 * len(lines)))
    image = Image.new("RGB", (size, size), "white")
    for index, line in enumerate(lines):
        y = size / 2 + (index - (len(lines) - 1) / 2) * 1.2 * font_size
        ImageDraw.Draw(image).text((size / 2, y), line, fill="black", font=letters.font(font_size), anchor="mm")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def prompt_of(word: str) -> str:
    return f'a sign that says "{word}"'


def print_table(rows: list[dict]) -> None:
    print("|", " | ".join(rows[0]), "|")
    print("|", " | ".join("---" for _ in rows[0]), "|")
    for row in rows:
        print("|", " | ".join(value if isinstance(value, str) else f"{value:.2f}" for value in row.values()), "|")
    print()


TABLES = {
    "degradations": (measure_degradations, sum(len(levels) for _, _, levels in DEGRADATIONS.values())),
    "characters": (measure_characters, 2 * len(WAYS)),
    "sides": (measure_sides, 3 * len(FONT_SIZES)),
    "texts": (measure_texts, 2 * len(LAYOUTS)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{' or '.join(TABLES)}; all by default")
    parser.add_argument("--size", type=int, default=64, help="side of the images, pixels; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the noise and of the letters that are broken")
    parser.add_argument("--language", choices=("en", "zh"), default="en", help="of the words; zh: simplified Chinese")
    parser.add_argument("--font", type=Path, help="a font file for zh; Noto Sans CJK's by default")
    args = parser.parse_args()
    unknown = sorted(set(args.tables) - set(TABLES))
    if unknown:
        parser.error(f"no table {', '.join(unknown)}; choose from {', '.join(TABLES)}")
    try:
        letters = chinese(args.font) if args.language == "zh" else LATIN
    except FileNotFoundError as error:
        parser.error(str(error))
    for name in args.tables or TABLES:
        measure, num_rows = TABLES[name]
        print_table(list(tqdm(measure(letters, args.size, args.seed), total=num_rows, desc=name, leave=False)))


if __name__ == "__main__":
    main()
