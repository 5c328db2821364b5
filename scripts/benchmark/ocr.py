"""Images per second of each engine, serial and in workers, against the loop that Flow-GRPO runs.

If a row names a side, its detector sees a smaller image (max_side). The loop is that of Flow-GRPO's OcrScorer, with today's
PaddleOCR: it reads one image after the other in the caller's process. Orientation and unwarping are off; all other settings
are the library's own. It uses the weights of the other rows. It has two rows: one with the library's own number of threads,
which is the number of cores, and one with a single thread.
"""

import argparse
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from flow_grpo.score import to_uint8
from flow_grpo.text_maps.paddle import MODELS, PARTS, model_folders
from flow_grpo.text_maps.reader import make_reader
from flow_grpo.text_maps.targets import normalise, similarity
from scripts.benchmark.matching import benchmark_matching
from scripts.pretrain.signs_world import words

SIDE = 384  # pixels of the detector's image in the rows that shrink it
LOOP, ONE_THREAD_LOOP = "loop, library threads", "loop, one thread"

ReadTexts = Callable[[torch.Tensor], list[str]]  # (B, 3, H, W) -> the whole text of each image


def draw_signs(size: int, num_images: int) -> tuple[torch.Tensor, list[str]]:
    """Images (B, 3, size, size) and what they say: a word below 256 px, else two lines of two words."""
    rng = np.random.default_rng(0)
    images, texts = zip(*(draw_sign(size, rng) for _ in range(num_images)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255, list(texts)


def draw_sign(size: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Dark letters on a light colour, with noise, turned by up to 5 degrees: (size, size, 3) uint8, and the text."""
    if size < 256:
        lines, letter_height = [rng.choice(words("test"))], size * rng.uniform(1 / 6, 1 / 4)
    else:
        lines = [" ".join(rng.choice(words("test"), 2)) for _ in range(2)]
        letter_height = size * rng.uniform(1 / 20, 1 / 8)
    light, dark = rng.integers(150, 256, 3), rng.integers(0, 80, 3)
    canvas = Image.new("L", (size, size))
    font = ImageFont.load_default(letter_height)
    for index, line in enumerate(lines):
        at = (size / 2, size * (0.5 + 0.3 * (index - (len(lines) - 1) / 2)))
        ImageDraw.Draw(canvas).text(at, line, fill=255, font=font, anchor="mm")
    ink = np.asarray(canvas.rotate(rng.uniform(-5, 5), Image.Resampling.BICUBIC))[..., None] / 255
    levels = light + ink * (dark - light) + rng.normal(0, 8, (size, size, 3))
    return levels.clip(0, 255).astype(np.uint8), " ".join(lines)


def flow_grpo_loop(**options) -> ReadTexts:
    if not version("paddleocr").startswith("3."):
        raise ImportError("the loop is written for PaddleOCR 3")
    import paddleocr

    logging.getLogger("paddlex").setLevel(logging.ERROR)  # it announces every model
    library_detector = {"limit_type": "min", "limit_side_len": 64, "use_dilation": False}
    with model_folders("onnxruntime", None, [], library_detector) as folders:
        for part, task in PARTS.items():
            options |= {f"{task}_model_name": MODELS[part], f"{task}_model_dir": str(folders[part])}
        ocr = paddleocr.PaddleOCR(
            **options,
            engine="onnxruntime",
            device="cpu",
            use_doc_orientation_classify=False,
            use_doc_unwarping=False,
            use_textline_orientation=False,
        )
    return lambda images: ["".join(ocr.predict(image)[0]["rec_texts"]) for image in to_uint8(images)]


def reader_row(engine: str, num_workers: int, **options) -> ReadTexts:
    reader = make_reader(engine, num_workers, options)
    return lambda images: ["".join(line.text for line in lines or []) for lines in reader.submit(images).result()]


def make_rows(num_workers: int) -> dict[str, ReadTexts]:
    """Every row that can be had here; one that lacks its package is named and left out."""
    builders = {
        LOOP: flow_grpo_loop,
        ONE_THREAD_LOOP: lambda: flow_grpo_loop(engine_config={"intra_op_num_threads": 1, "inter_op_num_threads": 1}),
    }
    for engine in ("rapidocr", "paddleocr"):
        builders[f"{engine}, serial"] = lambda engine=engine: reader_row(engine, 0)
        builders[f"{engine}, pooled"] = lambda engine=engine: reader_row(engine, num_workers)
        builders[f"{engine}, pooled, side {SIDE}"] = lambda engine=engine: reader_row(
            engine, num_workers, max_side=SIDE
        )
    rows = {}
    for name, build in tqdm(builders.items(), desc="engines"):
        try:
            rows[name] = build()
        except ImportError as error:
            print(f"without {name!r}: {error}", file=sys.stderr)
    return rows


def measure(rows: dict[str, ReadTexts], images: torch.Tensor, targets: list[str], repeats: int) -> dict[str, dict]:
    """Every row in turn, again and again, after one round to warm up: rates, and accuracy of the joined lines."""
    figures = {}
    for name, read in rows.items():
        pairs = [(normalise(text), normalise(target)) for text, target in zip(read(images), targets, strict=True)]
        figures[name] = {
            "similarity": statistics.mean(similarity(*pair) for pair in pairs),
            "exact": statistics.mean(text == target for text, target in pairs),
            "images_per_second": [],
        }
    for _ in tqdm(range(repeats), desc=f"rounds at {images.shape[-1]} px"):
        for name, read in rows.items():
            started = time.perf_counter()
            read(images)
            figures[name]["images_per_second"].append(len(images) / (time.perf_counter() - started))
    return figures


def ratio(figures: dict[str, dict], name: str, reference: str) -> float:
    """The median over rounds; nan where there is no such row."""
    if reference not in figures:
        return float("nan")
    rates = zip(figures[name]["images_per_second"], figures[reference]["images_per_second"], strict=True)
    return statistics.median(rate / other for rate, other in rates)


def benchmark_ocr(args: argparse.Namespace) -> dict:
    rows, figures = make_rows(args.workers), {}
    for size in args.sizes:
        figures[size] = measure(rows, *draw_signs(size, args.images), args.repeats)
    for size, by_row in figures.items():
        print(f"\n{size} px, {args.images} images, {args.workers} workers, median of {args.repeats} rounds")
        print(f"{'':<28}{'images/s':>10}{'/ serial':>10}{'/ loop':>8}{'/ loop, 1':>11}{'similarity':>12}{'exact':>7}")
        for name, row in by_row.items():
            serial = name.split(", pooled")[0] + ", serial" if "pooled" in name else name
            references = {"serial": serial, "loop": LOOP, "one_thread_loop": ONE_THREAD_LOOP}
            row["ratios"] = {key: ratio(by_row, name, reference) for key, reference in references.items()}
            to_serial, to_loop, to_one_thread = row["ratios"].values()
            print(
                f"{name:<28}{statistics.median(row['images_per_second']):>10.1f}{to_serial:>10.2f}{to_loop:>8.2f}"
                f"{to_one_thread:>11.2f}{row['similarity']:>12.3f}{row['exact']:>7.2f}"
            )
    return figures | {"matching": benchmark_matching(args.repeats)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512], help="pixels")
    parser.add_argument("--images", type=int, default=24, help="images a batch")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of a pool")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each reads the batch once with every row")
    parser.set_defaults(run=benchmark_ocr)
