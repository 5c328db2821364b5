"""How far the letters of a line stand out from their ground, and an engine that does not trust text that nobody can see."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

# The lightest and the darkest pixels that do not count, in percent each. Thin letters in a loose box are one percent of it.
_OUTLIERS = 0.5


class VisibleText:
    """An OcrEngine that gives confidence 0 to a line that stands out from its ground by less than min_contrast.

    engine: the OcrEngine that reads. min_contrast: in (0, 255], of 255 grey levels.
    """

    def __init__(self, engine: Callable[[np.ndarray], list], min_contrast: float):
        if not 0 < min_contrast <= 255:
            raise ValueError(f"min_contrast must lie in [0, 255] grey levels, got {min_contrast}; 0 takes every text")
        self._engine, self._min_contrast = engine, min_contrast

    def __call__(self, image: np.ndarray) -> list:
        return [
            line if contrast(image, line.quad) >= self._min_contrast else replace(line, confidence=0.0)
            for line in self._engine(image)
        ]


def contrast(image: np.ndarray, quad: np.ndarray) -> float:
    """By how many levels, of 255, the ink in a quad (4, 2) of an image (H, W, 3), uint8 RGB, stands out from its ground.

    It is the spread of what is left after the mean of the surroundings, as far as half the line's height, is taken away. So
    a smooth shade over the box hardly counts. It is taken in the colour channel where it is largest, because red on a green
    of the same lightness is easily read. A texture or an edge behind the letters counts as well: text that people see is
    not missed, but text that they do not see may be.
    """
    height, width = image.shape[:2]
    corners = np.clip(quad, 0, (width, height)).astype(float)  # outside is nothing that could stand out
    top, right, bottom, left = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)
    size = max(round((top + bottom) / 2), 1), max(round((left + right) / 2), 1)
    # Pillow names the corners from the upper left against the clock
    places = tuple(corners[[0, 3, 2, 1]].ravel().tolist())
    upright = Image.fromarray(image).transform(size, Image.Transform.QUAD, places)
    surroundings = upright.filter(ImageFilter.BoxBlur(size[1] / 2))
    ink = np.subtract(upright, surroundings, dtype=np.int16).reshape(-1, 3)
    low, high = np.percentile(ink, (_OUTLIERS, 100 - _OUTLIERS), axis=0)
    return float((high - low).max())
