"""`benchmark ocr`, second table: what matching long texts with their targets costs, beside reading them.

Each row is an image of 512 pixels with many lines, of which every tenth letter is wrong. Matching is all that a worker does after
it has read: assigning lines to targets and judging the boxes. Reading is RapidOCR's, of an image with the same lines; ideographs
are drawn as Latin letters there, which cost as much to read.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from flow_grpo.text_maps.box_judge import BoxJudge
from flow_grpo.text_maps.engine import TextLine, make_engine
from scripts.pretrain.signs_world import words

SIZE = 512  # pixels
WRONG = 0.1  # share of the letters
MATCHINGS = 9  # of each page: they are short, and a garbage collection in one of them must not count


class Page(NamedTuple):
    """An image's lines, and the texts that it was asked for."""

    lines: list[TextLine]
    targets: list[str]


def pages() -> Iterator[tuple[str, Page]]:
    """(what it is, the page) of each row, always the same."""
    rng = random.Random(0)
    for length in (240, 990):
        text = latin(rng, length)
        yield f"{length} letters", page(rng, wrapped(text, 40), 1, [text])
    for length in (200, 1000):
        text = ideographs(rng, length)
        yield f"{length} ideographs", page(rng, cut(text, 20), 1, [text])
    for length in (60, 200):
        text = ideographs(rng, length)
        yield f"{length} ideographs, a line each", page(rng, list(text), 15, [text])
    texts = [latin(rng, 240) for _ in range(4)]
    yield "4 texts of 240 letters", page(rng, [line for text in texts for line in wrapped(text, 40)], 1, texts)
    texts = [latin(rng, 14) for _ in range(20)]
    yield "20 texts of 14 letters", page(rng, [line for text in texts for line in cut(text, 5)], 3, texts)


def latin(rng: random.Random, length: int) -> str:
    drawn = " ".join(rng.choice(words("test")) for _ in range(length))
    return drawn[:length].strip()


def ideographs(rng: random.Random, length: int) -> str:
    return "".join(chr(0x4E00 + rng.randrange(3000)) for _ in range(length))


def wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def cut(text: str, width: int) -> list[str]:
    return [text[start : start + width].strip() for start in range(0, len(text), width)]


def page(rng: random.Random, texts: Sequence[str], columns: int, targets: list[str]) -> Page:
    """The texts in rows of so many columns, with some of their letters wrong."""
    width, height = SIZE / columns, SIZE / -(-len(texts) // columns)
    lines = []
    for index, text in enumerate(texts):
        shown = "".join("x" if rng.random() < WRONG else char for char in text)
        left, top = index % columns * width, index // columns * height
        right, bottom = left + 0.9 * width, top + 0.8 * min(height, 40)
        lines.append(TextLine([[left, top], [right, top], [right, bottom], [left, bottom]], shown, 0.9))
    return Page(lines, targets)


def draw(lines: Sequence[TextLine]) -> np.ndarray:
    """An image (512, 512, 3) uint8 of the lines, each as wide as its box, in Latin letters."""
    image = Image.new("RGB", (SIZE, SIZE), "white")
    for line in lines:
        text = "".join(char if char.isascii() else "M" for char in line.text)
        (left, top), (right, bottom) = line.quad[0], line.quad[2]
        unit = ImageFont.load_default(100).getlength(text) / 100
        font = ImageFont.load_default(max(min(bottom - top, (right - left) / unit), 4))
        ImageDraw.Draw(image).text((left, top), text, fill="black", font=font)
    return np.asarray(image)


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` times of this thread's CPU, after one to warm up: neighbours do not count."""
    work()
    times = []
    for _ in range(repeats):
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return 1000 * statistics.median(times)


def benchmark_matching(repeats: int) -> dict[str, dict[str, float]]:
    engine, figures = make_engine("rapidocr"), {}
    judge = BoxJudge(0.5, 1.0, 0.75, 0.0, per_character=False, normalisation="flow_grpo")
    for name, (lines, targets) in tqdm(list(pages()), desc="matching"):
        image = draw(lines)
        figures[name] = {
            "lines": len(lines),
            "matching_ms": milliseconds(lambda: judge(lines, targets), MATCHINGS),  # noqa: B023
            "reading_ms": milliseconds(lambda: engine(image), repeats),  # noqa: B023
        }
    print(f"\n{SIZE} px, one thread, median of {MATCHINGS} matchings and {repeats} readings")
    print(f"{'':<32}{'lines':>7}{'matching, ms':>14}{'reading, ms':>13}{'share':>8}")
    for name, row in figures.items():
        row["share"] = row["matching_ms"] / row["reading_ms"]
        print(f"{name:<32}{row['lines']:>7}{row['matching_ms']:>14.1f}{row['reading_ms']:>13.0f}{row['share']:>8.1%}")
    return figures
