"""The signs world: small procedural scenes whose every pixel is known.

A scene is a coloured background, a coloured shape and one to three signs, each of its own colour and with its own word of
three letters:

    a red circle, a blue sign "HUT" and a pink sign "DOG"

A sign stands in one of eight slots, two in each of four rows. No two signs share a row, and the shape stands in a row without
one. The caption does not say where. A pair is two shapes and no sign, for maps that must point at one of them.

The renderer knows the caption, the box of each word and the mask of each object exactly, so one world serves to pretrain
the tiny models, to test the maps that point into an image, and to run the demo. It needs numpy and Pillow alone.
"""

from collections.abc import Sequence
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
INK = (250, 250, 245)

# A word is consonant, vowel, consonant. Left out are the letters that OCR takes for another at this size (I, Q, J, ...).
CONSONANTS, VOWELS = "BDFGHKLMNPRSTVZ", "AEOU"
WORD_LENGTH = 3
NUM_WORDS = {"train": 700, "test": 200}
NUM_SIGNS = {1: 0.15, 2: 0.6, 3: 0.25}  # how often a scene has so many

SIZE = 64  # pixels
# A sign covers 4 x 2 cells of this many pixels, which is a slot; a shape covers 2 x 2. What shares a sign's row OCR would read
# with it: two signs as one line, a ring as the letter O.
CELL = 8
# No ring: its hole is as wide as a patch of a small image tower, whose map could only miss it.
PAIR_SHAPES = ("circle", "square", "star", "cross")
HELD_OUT = 1_000_000_000  # seeds from here on: scenes that no model is trained on
SUPERSAMPLING = 4  # drawn so much larger, then averaged


@dataclass(frozen=True)
class SceneObject:
    """What stands where: `name` as the caption says it ("red circle", "blue sign"), `mask` (SIZE, SIZE) bool.

    A sign has the `word` that the caption asks for, and text_box: (left, top, right, bottom) of the word's ink in pixels,
    right and bottom exclusive.
    """

    name: str
    mask: np.ndarray
    word: str = ""
    text_box: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class Scene:
    """One rendered scene: image (SIZE, SIZE, 3) uint8 RGB, and its objects in the caption's order, the shapes first."""

    caption: str
    image: np.ndarray
    objects: tuple[SceneObject, ...]

    @property
    def signs(self) -> tuple[SceneObject, ...]:
        return tuple(thing for thing in self.objects if thing.word)


@cache
def words(split: str) -> tuple[str, ...]:
    """The words of a split: "train", or "test", none of which is in "train"."""
    if split not in NUM_WORDS:
        raise ValueError(f"unknown split {split!r}; choose one of {sorted(NUM_WORDS)}")
    every = list(map("".join, product(CONSONANTS, VOWELS, CONSONANTS)))
    order = np.random.default_rng(0).permutation(len(every))
    first = 0 if split == "train" else NUM_WORDS["train"]
    return tuple(every[i] for i in order[first : first + NUM_WORDS[split]])


def make_scene(
    seed: int,
    split: str = "train",
    words_shown: Sequence[str] | None = None,
    worn_share: float = 0.0,
    wrong_share: float = 0.0,
    anywhere: bool = False,
) -> Scene:
    """Render the scene that belongs to a seed.

    words_shown: capitals, one word per sign, instead of those that the seed would draw.
    worn_share: how often the upper or lower half of a sign's letters has flaked off, as the weather leaves it.
    wrong_share: how often a sign that is not worn shows another letter than the caption says.
    anywhere: signs and shape stand anywhere on the grid of cells but on each other, instead of in slots.
    The caption tells of none of these and stays the same.
    """
    rng, weather = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    num_signs = int(rng.choice(list(NUM_SIGNS), p=list(NUM_SIGNS.values())))
    drawn = [words(split)[i] for i in rng.choice(len(words(split)), num_signs, replace=False)]
    kind = SHAPES[rng.integers(len(SHAPES))]
    shape_color, *sign_colors = (list(COLORS)[i] for i in rng.choice(len(COLORS), num_signs + 1, replace=False))
    shape_cell, *sign_cells = (_anywhere if anywhere else _in_slots)(num_signs, rng)

    canvas = Image.new("RGB", (SIZE * SUPERSAMPLING,) * 2, background)
    x, y = (CELL * (cell + 1) for cell in shape_cell)
    mask = shape_mask(kind, x, y, rng.uniform(6.5, 7.5))
    canvas.paste(COLORS[shape_color], mask=mask)
    objects = [SceneObject(f"{shape_color} {kind}", downsample(mask))]
    for word, color, (column, row) in zip(words_shown or drawn, sign_colors, sign_cells, strict=True):
        board, ink = sign_masks(word, CELL * (column + 2), CELL * (row + 1))
        objects.append(SceneObject(f"{color} sign", downsample(board), word, ink_box(downsample(ink))))
        fate = weather.random()
        if worn_share <= fate < worn_share + (1 - worn_share) * wrong_share:
            board, ink = sign_masks(_misspelt(word, weather), CELL * (column + 2), CELL * (row + 1))
        canvas.paste(COLORS[color], mask=board)
        canvas.paste(INK, mask=ink)
        if fate < worn_share:
            canvas.paste(COLORS[color], mask=_flaked_mask(ink, weather))
    return Scene(_caption(objects), np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX)), tuple(objects))


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

    canvas = Image.new("RGB", (SIZE * SUPERSAMPLING,) * 2, background)
    objects = []
    for kind, color, (x, y), radius in zip(kinds, colors, centers, radii):
        mask = shape_mask(kind, x, y, radius)
        canvas.paste(COLORS[color], mask=mask)
        objects.append(SceneObject(f"{color} {kind}", downsample(mask)))
    return Scene(_caption(objects), np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX)), tuple(objects))


def render_sign(word: str, color: str, height: int, width: int) -> np.ndarray:
    """A sign alone, in the middle of (height, width, 3) uint8 of its board's colour."""
    _, ink = sign_masks(word, width / 2, height / 2)
    canvas = Image.new("RGB", ink.size, COLORS[color])
    canvas.paste(INK, mask=ink)
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX))[:height, :width]


def render_shape(kind: str, x: float, y: float, radius: float = 7.0) -> np.ndarray:
    """The mask (SIZE, SIZE) bool of a shape with its middle at x, y."""
    return downsample(shape_mask(kind, x, y, radius))


def _in_slots(num_signs: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """The left upper cell (column, row) of the shape and of each sign: signs in slots, the shape in a row without one."""
    rows = 2 * rng.permutation(SIZE // CELL // 2)[:num_signs]
    signs = [(4 * int(rng.integers(2)), int(row)) for row in rows]
    free = [cell for cell in product(range(0, SIZE // CELL, 2), repeat=2) if cell[1] not in rows]
    return [free[rng.integers(len(free))], *signs]


def _anywhere(num_signs: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """The left upper cell (column, row) of the shape and of each sign, so that none covers another."""
    cells = SIZE // CELL
    while True:
        signs = [(int(rng.integers(cells - 3)), int(rng.integers(cells - 1))) for _ in range(num_signs)]
        shape = (int(rng.integers(cells - 1)), int(rng.integers(cells - 1)))
        apart = all(abs(one[1] - two[1]) >= 2 for i, one in enumerate(signs) for two in signs[:i])
        if apart and all(abs(shape[1] - row) >= 2 or not -2 < shape[0] - column < 4 for column, row in signs):
            return [shape, *signs]


def _caption(objects: Sequence[SceneObject]) -> str:
    *rest, last = (f"a {thing.name}" + (f' "{thing.word}"' if thing.word else "") for thing in objects)
    return f"{', '.join(rest)} and {last}"


def _misspelt(word: str, rng: np.random.Generator) -> str:
    """The word with one letter replaced by another of its kind."""
    place = int(rng.integers(len(word)))
    others = (VOWELS if word[place] in VOWELS else CONSONANTS).replace(word[place], "")
    return word[:place] + others[rng.integers(len(others))] + word[place + 1 :]


def shape_mask(kind: str, x: float, y: float, radius: float) -> Image.Image:
    mask = Image.new("L", (SIZE * SUPERSAMPLING,) * 2)
    draw = ImageDraw.Draw(mask)
    x, y, r = (SUPERSAMPLING * v for v in (x, y, radius))
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


@dataclass(frozen=True)
class SignSize:
    """In pixels: half the board's width and height, the radius of its corners, a letter's cell and its type size."""

    half_width: float
    half_height: float
    corner: float
    pitch: float
    letter: float


SIGN = SignSize(half_width=15.5, half_height=7.5, corner=2, pitch=9.5, letter=14)


def sign_masks(word: str, x: float, y: float, size: SignSize = SIGN) -> tuple[Image.Image, Image.Image]:
    """The sign's board and its letters, as masks at drawing resolution; each letter stands in a cell of its own."""
    board, ink = (Image.new("L", (SIZE * SUPERSAMPLING,) * 2) for _ in range(2))
    x, y = x * SUPERSAMPLING, y * SUPERSAMPLING
    half_width, half_height = size.half_width * SUPERSAMPLING, size.half_height * SUPERSAMPLING
    corners = (x - half_width, y - half_height, x + half_width, y + half_height)
    ImageDraw.Draw(board).rounded_rectangle(corners, radius=size.corner * SUPERSAMPLING, fill=255)
    draw = ImageDraw.Draw(ink)
    for index, letter in enumerate(word):
        at = (x + (index - (len(word) - 1) / 2) * size.pitch * SUPERSAMPLING, y)
        draw.text(at, letter, fill=255, font=_font(size.letter), anchor="mm", stroke_width=SUPERSAMPLING // 2)
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
def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size * SUPERSAMPLING)  # the face that Pillow carries


def downsample(mask: Image.Image) -> np.ndarray:
    """A pixel belongs to a mask where at least half of it is covered."""
    return np.asarray(mask.resize((SIZE, SIZE), Image.Resampling.BOX)) >= 128


def ink_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
