"""Both engines for real, on text whose every letter is known: what they find, what they read, and that they agree."""

import math
from pathlib import Path

import Levenshtein
import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from flow_grpo.text_maps.engine import make_engine

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"

# image size, font (None is Pillow's own), font size, degrees of rotation, lines
CASES = [
    (64, None, 18, 0, ["HUT"]),
    (64, "DejaVuSans.ttf", 16, 0, ["Exit"]),
    (64, "DejaVuSans-Bold.ttf", 14, 10, ["STOP"]),
    (64, None, 16, 0, ["RED", "BOX"]),
    (96, "DejaVuSerif.ttf", 18, -15, ["Museum"]),
    (128, "DejaVuSansMono.ttf", 22, 20, ["Market"]),
    (128, None, 20, 0, ["Open", "all", "night"]),
    (128, "DejaVuSerif-Bold.ttf", 15, -5, ["Wet Paint"]),
    (192, "DejaVuSans.ttf", 24, 30, ["Library"]),
    (256, "DejaVuSerif.ttf", 26, 0, ["Spring Collection"]),
    (256, "DejaVuSans-Oblique.ttf", 30, -30, ["Grand", "Opening"]),
    (256, None, 36, 15, ["Coffee", "House"]),
    (384, "DejaVuSansMono-Bold.ttf", 34, 5, ["New York", "Times", "Square"]),
    (512, "DejaVuSerif.ttf", 48, -20, ["Happy Birthday"]),
    (512, "DejaVuSans.ttf", 36, 0, ["Fresh bread 7 to 9", "Closed on Mondays"]),
    (768, None, 80, 25, ["Welcome home"]),
    (1024, "DejaVuSans-Bold.ttf", 96, 0, ["Do Not Enter", "Platform 12", "Mind the gap"]),
]


def load_font(name, size):
    return ImageFont.truetype(str(FONTS / name), size) if name else ImageFont.load_default(size)


def draw(size, font, font_size, angle, lines):
    """The image (size, size, 3) uint8 and the centre (x, y) of each of its lines, black on white."""
    image = Image.new("RGB", (size, size), "white")
    font = load_font(font, font_size)
    # degrees grow anticlockwise, y downwards
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    centres = []
    for index, line in enumerate(lines):
        below = (index - (len(lines) - 1) / 2) * 1.5 * font_size
        ImageDraw.Draw(image).text((size / 2, size / 2 + below), line, fill="black", font=font, anchor="mm")
        centres.append((size / 2 + below * sin, size / 2 + below * cos))
    return np.array(image.rotate(angle, resample=Image.BICUBIC, fillcolor="white")), centres


def similarity(text, target):
    return 1 - Levenshtein.distance(text, target) / max(len(text), len(target))


@pytest.fixture(scope="module", params=["rapidocr", "paddleocr"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def engines():
    return {name: make_engine(name) for name in ("rapidocr", "paddleocr")}


@pytest.fixture(scope="module")
def readings(engines):
    """By engine, for each case: the line that the engine found at the place of each drawn one, or None; and how many."""
    found = {name: [] for name in engines}
    for case in CASES:
        image, centres = draw(*case)
        for name, engine in engines.items():
            lines = engine(image)
            here = [
                [line for line in lines if math.dist(line.quad.mean(0), centre) < case[2] / 2] for centre in centres
            ]
            found[name].append(([matches[0] if matches else None for matches in here], len(lines)))
    return found


def test_every_drawn_line_is_found_and_nothing_else(readings, name):
    for (*_, drawn), (lines, count) in zip(CASES, readings[name], strict=True):
        assert None not in lines and count == len(drawn), drawn


def test_drawn_text_is_read(readings, name):
    read = [line.text for lines, _ in readings[name] for line in lines]
    drawn = [text for *_, texts in CASES for text in texts]
    similarities = [similarity(*pair) for pair in zip(read, drawn, strict=True)]
    assert np.mean(similarities) >= 0.95, list(zip(read, drawn))


def test_quads_turn_with_the_text(readings, name):
    for (size, _, font_size, angle, _), (lines, _) in zip(CASES, readings[name], strict=True):
        for line in lines:
            across, down = line.quad[1] - line.quad[0], line.quad[3] - line.quad[0]
            # corners are whole pixels: two of them wrong by one turn a short line by so much
            slack = 3 + math.degrees(2 / np.hypot(*across))
            assert abs(-math.degrees(math.atan2(across[1], across[0])) - angle) < slack, (size, angle, line.quad)
            assert 0.7 * font_size < np.hypot(*down) < 2 * font_size  # ascenders and descenders, and what is added


def test_engines_agree(readings):
    """The same weights and the same settings: what differs is the interpolation of a crop, and rounding."""
    pairs = [
        pair
        for (rapid, _), (paddle, _) in zip(readings["rapidocr"], readings["paddleocr"], strict=True)
        for pair in zip(rapid, paddle, strict=True)
    ]
    assert np.mean([rapid.text == paddle.text for rapid, paddle in pairs]) >= 0.9
    assert np.mean([abs(rapid.confidence - paddle.confidence) for rapid, paddle in pairs]) < 0.02
    for rapid, paddle in pairs:
        # each rounds its corners to whole pixels of the detector's input, and again to the image's
        assert np.abs(rapid.quad - paddle.quad).max() <= 2


def test_text_that_runs_down_starts_at_its_top(engines, name):
    upright, _ = draw(192, None, 30, 0, ["Open Late"])
    (line,) = engines[name](np.rot90(upright, k=-1))  # clockwise
    assert line.text == "Open Late"
    start_above, end_above, end_below, start_below = line.quad
    assert start_above[0] > start_below[0] and end_above[0] > end_below[0]  # the letters' tops lie on the right
    assert start_above[1] < end_above[1] and start_below[1] < end_below[1]


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (1, 512), (512, 1), (20, 4096)], ids=str)
@pytest.mark.parametrize("grey", [0, 255])
def test_image_without_text_gives_no_line(engines, name, shape, grey):
    assert engines[name](np.full((*shape, 3), grey, dtype=np.uint8)) == []


def test_noise_gives_no_line_or_lines_within_the_image(engines, name):
    for size in (64, 256):
        noise = np.random.default_rng(size).integers(0, 256, (size, size, 3), dtype=np.uint8)
        for line in engines[name](noise):
            assert 0 <= line.quad.min() and line.quad.max() <= size


def test_large_image_is_read_at_its_own_place(engines, name):
    image, _ = draw(4096, None, 200, 0, ["Large"])
    (line,) = engines[name](image)
    assert line.text == "Large"
    # the detector sees 960 of the 4096 pixels: one of its own is 4.3 of the image's
    assert np.abs(line.quad.mean(0) - 2048).max() < 30


@pytest.mark.parametrize("anchor, corner", [("lt", 0), ("rb", 128)])
def test_text_that_touches_the_border_is_found_within_the_image(engines, name, anchor, corner):
    image = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(image).text((corner, corner), "Market", fill="black", font=load_font(None, 28), anchor=anchor)
    (line,) = engines[name](np.array(image))
    assert similarity(line.text, "Market") > 0.6
    assert 0 <= line.quad.min() and line.quad.max() <= 128


@pytest.mark.parametrize("text", ["😀☺♥", "שלום עולם", "مرحبا", "Ωμέγα", "ﬁ½№", "漢字"])
def test_text_of_other_scripts_is_read_somehow(engines, name, text):
    image, _ = draw(160, "DejaVuSans.ttf", 30, 0, [text])  # which draws a box for each 漢字
    for line in engines[name](image):
        assert 0 <= line.confidence <= 1 and line.text.strip()


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8)), np.zeros((8, 8, 4)), np.zeros((0, 8, 3)), np.zeros((2, 8, 8, 3)), [[[0, 0, 0]], [[0, 0, 0]]]],
    ids=["grey", "RGBA", "empty", "batch", "integers"],
)
def test_what_is_no_image_is_refused(engines, name, image):
    if isinstance(image, np.ndarray):
        image = image.astype(np.uint8)
    with pytest.raises(ValueError, match=r"\(H, W, 3\), uint8"):
        engines[name](image)


def test_float_image_is_refused(engines, name):
    with pytest.raises(ValueError, match="got float32"):
        engines[name](np.zeros((8, 8, 3), dtype=np.float32))
