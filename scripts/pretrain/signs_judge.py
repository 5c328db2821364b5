"""What an image of the signs world really shows, told by colour and by the shape of the letters, without OCR.

A caption names a shape and signs by their colours. Each is looked for at every place where the world may put it:

    sign     the place whose 4 x 2 cells have most of the sign's colour; the letters there are those of the sharpest fit
    shape    the kind and the place whose outline overlaps the shape's colour best

So a judge that no reward has seen can say whether a word is right, and on the sign that the caption means. It needs numpy and
Pillow alone.
"""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from scripts.pretrain.signs_world import (
    CELL,
    COLORS,
    CONSONANTS,
    INK,
    SHAPES,
    SIZE,
    VOWELS,
    WORD_LENGTH,
    render_shape,
    render_sign,
)

NEAR = 60  # levels: how far a pixel's colour may lie from the named one, in its largest channel
MIN_BOARD = 0.25  # of a sign's cells: less of its colour is no sign
MAX_MISFIT = 0.06  # mean squared error of a letter's ink in [0, 1]; a blank board is 0.2 to 0.3 away from any letter
MIN_OVERLAP = 0.6  # intersection over union of a shape with what has its colour

_PHRASE = re.compile(r'a (\w+) (\w+)(?: "(\w+)")?')
_WORD = re.compile(f"[{CONSONANTS}{VOWELS}]{{{WORD_LENGTH}}}")


@dataclass(frozen=True)
class FoundSign:
    """A sign that the caption asks for. mask: (SIZE, SIZE) bool, its cells, empty where no place has its colour.

    letters_right: (3,) bool, of the letters as they stand; right: all of them.
    """

    color: str
    word: str
    mask: np.ndarray
    letters_right: tuple[bool, ...]

    @property
    def right(self) -> bool:
        return all(self.letters_right)


@dataclass(frozen=True)
class Verdict:
    """signs: in the caption's order. shape_right: the shape is there, in its colour."""

    signs: tuple[FoundSign, ...]
    shape_right: bool

    @property
    def sign_mask(self) -> np.ndarray:
        """(SIZE, SIZE) bool: where any of the signs stands."""
        return np.any([sign.mask for sign in self.signs], axis=0)


def judge(image: np.ndarray, caption: str) -> Verdict:
    """Compare an image (SIZE, SIZE, 3) uint8 with a caption of the signs world.

    Raises ValueError for another size or a caption that this world does not write.
    """
    if image.shape != (SIZE, SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(f"expected an image ({SIZE}, {SIZE}, 3) of uint8, got {image.shape} of {image.dtype}")
    shape, *signs = check_caption(caption)
    return Verdict(
        signs=tuple(_find_sign(image, color, word) for color, _, word in signs),
        shape_right=_shape_overlap(image, *shape[:2]) >= MIN_OVERLAP,
    )


def check_caption(caption: str) -> list[tuple[str, str, str]]:
    """(colour, kind, word) of the caption's shape and then of each sign; the shape's word is empty.

    Raises ValueError for a caption that this world does not write.
    """
    shape, *signs = _PHRASE.findall(caption) or [("", "", "")]
    known = shape[0] in COLORS and shape[1] in SHAPES and not shape[2] and signs
    if not known or not all(
        color in COLORS and kind == "sign" and _WORD.fullmatch(word) for color, kind, word in signs
    ):
        raise ValueError(
            f'not a caption of the signs world: {caption!r}; expected e.g. a red ring and a blue sign "HUT"'
        )
    return [shape, *signs]


def _find_sign(image: np.ndarray, color: str, word: str) -> FoundSign:
    like = _near(image, COLORS[color])
    height, width = 2 * CELL, 4 * CELL
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    windows = np.lib.stride_tricks.sliding_window_view(like, (height, width))[::CELL, ::CELL]
    amount = windows.mean(axis=(2, 3))  # (rows, columns) of places
    row, column = np.unravel_index(amount.argmax(), amount.shape)
    if amount[row, column] < MIN_BOARD:
        return FoundSign(color, word, mask, (False,) * len(word))
    top, left = row * CELL, column * CELL
    mask[top : top + height, left : left + width] = True
    ink = _ink_of(image[top : top + height, left : left + width], color)  # (16, 32) in [0, 1]
    return FoundSign(color, word, mask, tuple(_letter_fits(ink, place, letter) for place, letter in enumerate(word)))


def _letter_fits(ink: np.ndarray, place: int, letter: str) -> bool:
    """Whether no other letter fits better at this place of a word, and this one well."""
    misfits = {}
    for other, (columns, template) in _letter_templates(place).items():
        misfits[other] = np.square(ink[:, columns] - template).mean()
    return min(misfits, key=misfits.get) == letter and misfits[letter] <= MAX_MISFIT


@cache
def _letter_templates(place: int) -> dict[str, tuple[slice, np.ndarray]]:
    """For each letter of the world its ink at a place of the word, and the columns of the sign that it stands in."""
    templates = {}
    for letter in CONSONANTS + VOWELS:
        word = ["H"] * WORD_LENGTH
        word[place] = letter
        board = render_sign("".join(word), "black", 2 * CELL, 4 * CELL)  # (16, 32, 3) uint8
        columns = slice(2 + round(9.5 * place), 2 + round(9.5 * place) + 9)
        templates[letter] = columns, _ink_of(board, "black")[:, columns]
    return templates


def _ink_of(image: np.ndarray, color: str) -> np.ndarray:
    """How far each pixel lies on the way from the board's colour to the ink's, in [0, 1]."""
    board, way = np.array(COLORS[color], dtype=float), np.subtract(INK, COLORS[color])
    return ((image - board) @ way / (way @ way)).clip(0, 1)


def _shape_overlap(image: np.ndarray, color: str, kind: str) -> float:
    """The best overlap of a shape's outline with its colour; 0 where another kind overlaps better.

    Only the shape's own cells count: elsewhere the edges of other objects mix to colours that are like it.
    """
    like = _near(image, COLORS[color])
    blocks = np.lib.stride_tricks.sliding_window_view(like, (2 * CELL, 2 * CELL))[::CELL, ::CELL]
    blocks = blocks.reshape(-1, (2 * CELL) ** 2).astype(np.float32)  # (places, pixels)
    best = {}
    for other, outlines in _shape_outlines().items():
        inside = blocks @ outlines.T  # (places, sizes)
        best[other] = (inside / (blocks.sum(axis=1)[:, None] + outlines.sum(axis=1) - inside)).max()
    return best[kind] if max(best, key=best.get) == kind else 0.0


@cache
def _shape_outlines() -> dict[str, np.ndarray]:
    """Each kind's outline in its cells, in three sizes: (sizes, pixels)."""
    return {
        kind: np.stack(
            [render_shape(kind, CELL, CELL, r)[: 2 * CELL, : 2 * CELL].ravel() for r in (6.6, 7.0, 7.4)]
        ).astype(np.float32)
        for kind in SHAPES
    }


def _near(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return np.abs(image.astype(int) - color).max(axis=2) < NEAR
