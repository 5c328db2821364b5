"""The signs world: small procedural scenes whose every pixel is known.

A scene is a coloured background, one or two coloured shapes above, and a sign below with a word of 3 to 5 letters:

    a red circle and a blue sign that says "HUT"

A pair is two such shapes anywhere and no sign, for maps that must point at one of them.

The renderer knows the caption, the box of the text and the mask of each object exactly, so one world serves to pretrain
the tiny models, to test the maps that point into an image, and to run the demo. It needs numpy and Pillow alone.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLORS = {
    "red": (214, 48, 49),
    "green": (30, 150, 76),
    "blue": (40, 84, 205),
    "pink": (236, 112, 178),
    "brown": (128, 78, 42),
    "black": (28, 28, 32),
}
SHAPES = ("circle", "square", "star", "ring", "cross")
BACKGROUNDS = ((238, 232, 213), (205, 226, 240), (214, 236, 205), (240, 214, 206))

# Words alternate consonants and vowels. Left out are the letters that OCR takes for another at this size (I, Q, J, ...).
CONSONANTS, VOWELS = "BDFGHKLMNPRSTVZ", "AEOU"
WORD_LENGTHS = (3, 4, 5)
NUM_WORDS = {"train": 1800, "test": 384}

SIZE = 64  # pixels
# No ring: its hole is as wide as a patch of a small image tower, whose map could only miss it.
PAIR_SHAPES = ("circle", "square", "star", "cross")
HELD_OUT = 1_000_000_000  # seeds from here on: scenes that no model is trained on
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class SceneObject:
    """What stands where: `name` as the caption says it ("red circle", "blue sign"), `mask` (SIZE, SIZE) bool."""

    name: str
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """One rendered scene.

    image: (SIZE, SIZE, 3) uint8 RGB. text_box: (left, top, right, bottom) of the word's ink in pixels, right and bottom
    exclusive. objects: the shapes from left to right, then the sign, in the caption's order. A pair has no sign: its word
    is empty, and so is its text_box.
    """

    caption: str
    word: str
    image: np.ndarray
    text_box: tuple[int, int, int, int]
    objects: tuple[SceneObject, ...]


@cache
def words(split: str) -> tuple[str, ...]:
    """The words of a split: "train", or "test", none of which is in "train"; as many of each length."""
    if split not in NUM_WORDS:
        raise ValueError(f"unknown split {split!r}; choose one of {sorted(NUM_WORDS)}")
    rng = np.random.default_rng(0)
    drawn = {name: [] for name in NUM_WORDS}
    for length in WORD_LENGTHS:
        every = list(map("".join, product(*((CONSONANTS, VOWELS) * 3)[:length])))
        chosen = iter(rng.permutation(len(every)))
        for name, num_words in NUM_WORDS.items():
            drawn[name] += [every[next(chosen)] for _ in range(num_words // len(WORD_LENGTHS))]
    return tuple(drawn[split])


def make_scene(seed: int, split: str = "train", word: str | None = None, worn: bool = False) -> Scene:
    """Render the scene that belongs to a seed.

    word: capitals, instead of the word that the seed would draw. worn: half the height of the letters has flaked off the
    sign, as the weather leaves it; the caption still says what it once said. Everything else of the scene is the same.
    """
    rng = np.random.default_rng(seed)
    drawn = words(split)[rng.integers(len(words(split)))]
    word = drawn if word is None else word
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    num_shapes = int(rng.integers(1, 3))
    kinds = [SHAPES[i] for i in rng.choice(len(SHAPES), num_shapes, replace=False)]
    *shape_colors, sign_color = (list(COLORS)[i] for i in rng.choice(len(COLORS), num_shapes + 1, replace=False))

    canvas = Image.new("RGB", (SIZE * _SUPERSAMPLING,) * 2, background)
    objects = []
    for index, (kind, color) in enumerate(zip(kinds, shape_colors)):
        center_x = SIZE * (2 * index + 1) / (2 * num_shapes) + rng.uniform(-3, 3)
        center_y, radius = 17 + rng.uniform(-2, 2), rng.uniform(10, 12)
        mask = _shape_mask(kind, center_x, center_y, radius)
        canvas.paste(COLORS[color], mask=mask)
        objects.append(SceneObject(f"{color} {kind}", _downsample(mask)))
    sign_mask, text_mask = _sign_masks(word, 32 + rng.uniform(-1.5, 1.5), 48 + rng.uniform(-3, 3))
    canvas.paste(COLORS[sign_color], mask=sign_mask)
    canvas.paste((250, 250, 245), mask=text_mask)
    if worn:
        canvas.paste(COLORS[sign_color], mask=_flaked_mask(text_mask, rng))
    objects.append(SceneObject(f"{sign_color} sign", _downsample(sign_mask)))

    return Scene(
        caption=_caption([o.name for o in objects], word),
        word=word,
        image=np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX)),
        text_box=_ink_box(_downsample(text_mask)),
        objects=tuple(objects),
    )


def make_pair(seed: int) -> Scene:
    """Render the two shapes that belong to a seed: of different kinds and colours, anywhere but on each other."""
    rng = np.random.default_rng(seed)
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    kinds = [PAIR_SHAPES[i] for i in rng.choice(len(PAIR_SHAPES), 2, replace=False)]
    colors = [list(COLORS)[i] for i in rng.choice(len(COLORS), 2, replace=False)]
    radii = rng.uniform(11, 13, 2)
    reach = 1.1 * radii.max() + 1  # a star reaches furthest
    centers = rng.uniform(reach, SIZE - reach, (2, 2))  # (x, y) each
    while np.linalg.norm(centers[0] - centers[1]) < 2 * reach:
        centers = rng.uniform(reach, SIZE - reach, (2, 2))
    centers = centers[centers[:, 0].argsort()]

    canvas = Image.new("RGB", (SIZE * _SUPERSAMPLING,) * 2, background)
    objects = []
    for kind, color, (x, y), radius in zip(kinds, colors, centers, radii):
        mask = _shape_mask(kind, x, y, radius)
        canvas.paste(COLORS[color], mask=mask)
        objects.append(SceneObject(f"{color} {kind}", _downsample(mask)))
    return Scene(
        caption=" and ".join(f"a {o.name}" for o in objects),
        word="",
        image=np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX)),
        text_box=(0, 0, 0, 0),
        objects=tuple(objects),
    )


def _caption(names: list[str], word: str) -> str:
    *shapes, sign = (f"a {name}" for name in names)
    return f'{", ".join(shapes)} and {sign} that says "{word}"'


def _shape_mask(kind: str, x: float, y: float, radius: float) -> Image.Image:
    mask = Image.new("L", (SIZE * _SUPERSAMPLING,) * 2)
    draw = ImageDraw.Draw(mask)
    x, y, r = (_SUPERSAMPLING * v for v in (x, y, radius))
    if kind == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    elif kind == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), outline=255, width=round(0.4 * r))
    elif kind == "square":
        side = 0.88 * r
        draw.rectangle((x - side, y - side, x + side, y + side), fill=255)
    elif kind == "cross":
        arm = 0.34 * r
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=255)
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=255)
    else:  # a star: ten corners, every other one drawn in
        corners = np.arange(10)
        reach = np.where(corners % 2, 0.45, 1.1) * r
        angle = corners * np.pi / 5 - np.pi / 2
        draw.polygon(list(zip(x + reach * np.cos(angle), y + reach * np.sin(angle))), fill=255)
    return mask


def _sign_masks(word: str, x: float, y: float) -> tuple[Image.Image, Image.Image]:
    """The sign's board and its letters, as masks at drawing resolution; each letter stands in a cell of its own."""
    board, ink = (Image.new("L", (SIZE * _SUPERSAMPLING,) * 2) for _ in range(2))
    x, y = x * _SUPERSAMPLING, y * _SUPERSAMPLING
    half_width, half_height = 30 * _SUPERSAMPLING, 10 * _SUPERSAMPLING
    corners = (x - half_width, y - half_height, x + half_width, y + half_height)
    ImageDraw.Draw(board).rounded_rectangle(corners, radius=3 * _SUPERSAMPLING, fill=255)
    draw = ImageDraw.Draw(ink)
    pitch = 11 * _SUPERSAMPLING
    for index, letter in enumerate(word):
        at = (x + (index - (len(word) - 1) / 2) * pitch, y)
        draw.text(at, letter, fill=255, font=_font(), anchor="mm", stroke_width=_SUPERSAMPLING // 2)
    return board, ink


def _flaked_mask(ink: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The upper or lower half of the letters, with a ragged edge."""
    left, top, right, bottom = ink.getbbox()
    height = bottom - top
    xs = np.linspace(left - 1, right + 1, 12)
    edge = top + height * rng.uniform(0.4, 0.6, len(xs))
    far = top - 1 if rng.random() < 0.5 else bottom + 1
    mask = Image.new("L", ink.size)
    ImageDraw.Draw(mask).polygon([*zip(xs, edge), (right + 1, far), (left - 1, far)], fill=255)
    return mask


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=15 * _SUPERSAMPLING)  # the face that Pillow carries


def _downsample(mask: Image.Image) -> np.ndarray:
    """A pixel belongs to a mask where at least half of it is covered."""
    return np.asarray(mask.resize((SIZE, SIZE), Image.Resampling.BOX)) >= 128


def _ink_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
