"""Call the program Tesseract: it takes one image and returns its lines of text."""

import csv
import io
import os
import shutil
import subprocess
from collections.abc import Callable

import numpy as np
from PIL import Image

MIN_SIDE = 256  # pixels; a smaller image is enlarged, because Tesseract's networks need letters of about 30 pixels

ReadLines = Callable[[np.ndarray], list[tuple[np.ndarray, str, float]]]


def load_tesseract(language: str) -> ReadLines:
    """A function from an image (H, W, 3), uint8 RGB, to its lines: (quad, text, confidence).

    Raises FileNotFoundError if the program is missing, and ValueError if it does not have the language.
    """
    program = shutil.which("tesseract")
    if program is None:
        raise FileNotFoundError('the "tesseract" engine needs the program: apt-get install tesseract-ocr')
    listed = subprocess.run([program, "--list-langs"], capture_output=True, text=True, check=True).stdout
    known = listed.split("\n")[1:]
    if not set(language.split("+")) <= set(known):
        raise ValueError(
            f"Tesseract has no language {language!r}, but {' '.join(known)}; install tesseract-ocr-LANGUAGE"
        )
    # mode 11: find text anywhere, without the layout of a page
    command = [program, "stdin", "stdout", "--psm", "11", "-l", language, "tsv"]
    environment = os.environ | {"OMP_THREAD_LIMIT": "1"}

    def read(image: np.ndarray) -> list[tuple[np.ndarray, str, float]]:
        scale = -(-MIN_SIDE // max(image.shape[:2]))  # rounded up
        picture, file = Image.fromarray(image), io.BytesIO()
        picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC).save(file, "PPM")
        finished = subprocess.run(command, input=file.getvalue(), capture_output=True, env=environment)
        if finished.returncode:
            raise RuntimeError(f"Tesseract failed: {finished.stderr.decode(errors='replace').strip()}")
        return parse_words(finished.stdout.decode(), scale)

    return read


def parse_words(table: str, scale: int = 1) -> list[tuple[np.ndarray, str, float]]:
    """Lines from Tesseract's table of words: (quad (4, 2) in pixels of the image, text, confidence in [0, 1]).

    A line's box encloses its words' boxes. Its confidence is the mean of theirs, weighted by length. All boxes are upright.
    """
    lines = {}
    for row in csv.DictReader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE):
        if row["level"] == "5" and row["text"].strip():
            lines.setdefault((row["block_num"], row["par_num"], row["line_num"]), []).append(row)
    found = []
    for words in lines.values():
        left, top = (min(float(word[side]) for word in words) for side in ("left", "top"))
        right = max(float(word["left"]) + float(word["width"]) for word in words)
        bottom = max(float(word["top"]) + float(word["height"]) for word in words)
        quad = np.array([[left, top], [right, top], [right, bottom], [left, bottom]]) / scale
        lengths = [len(word["text"]) for word in words]
        confidence = np.average([float(word["conf"]) for word in words], weights=lengths) / 100
        found.append((quad, " ".join(word["text"] for word in words), float(np.clip(confidence, 0, 1))))
    return found
