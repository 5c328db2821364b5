"""Pictures of maps: one image under its map, a sheet of many pictures, and a figure that explains its colours.

This file needs only numpy and Pillow.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .score import MapKind

# The colours of 0, 0.5 and 1. In a reward map, blue is bad, white is neutral (0.5) and red is good. An importance map has
# no neutral value: it goes from dark to light.
COLORS = {
    "reward": ((40, 80, 200), (255, 255, 255), (200, 40, 40)),
    "importance": ((26, 18, 76), (214, 72, 84), (255, 238, 150)),
}
MEANINGS = {"reward": ("0 bad", "0.5 neutral", "1 good"), "importance": ("0 least important", "", "1 most important")}

_MARGIN, _GAP = 16, 12  # pixels, of a figure


class Panel(NamedTuple):
    """One map of an image: the scorer that made it, the image's reward, and the map (H, W) in [0, 1] with its kind.

    valid: False if the scorer says that its map must not be used.
    read: what the scorer read in the image; None where it does not read.
    """

    scorer: str
    reward: float
    reward_map: np.ndarray
    map_kind: MapKind
    valid: bool = True
    read: str | None = None

    @property
    def caption(self) -> str:
        caption = f"score {self.reward:.3f}" + ("" if self.valid else ", map not valid")
        if self.read is None:
            return caption
        return f"{caption}, read {self.read!r}" if self.read else f"{caption}, nothing read"


def color_map(reward_map: np.ndarray, map_kind: MapKind = "reward") -> np.ndarray:
    """A map (H, W) in [0, 1] as colours (H, W, 3) uint8, interpolated linearly between the kind's COLORS. NaN becomes grey."""
    channels = zip(*COLORS[map_kind])
    colors = [np.interp(reward_map, (0, 0.5, 1), levels) for levels in channels]
    return np.nan_to_num(np.stack(colors, axis=-1), nan=128).round().astype(np.uint8)


def overlay(
    image: np.ndarray, reward_map: np.ndarray, opacity: float = 0.6, map_kind: MapKind = "reward"
) -> np.ndarray:
    """Lay the colours of a map (H, W) in [0, 1] over the image (H, W, 3) uint8, which is turned grey."""
    grey = image.mean(axis=2, keepdims=True)
    return (opacity * color_map(reward_map, map_kind) + (1 - opacity) * grey).round().astype(np.uint8)


def sheet(tiles: Sequence[np.ndarray], labels: Sequence[str], columns: int, tile_size: int = 128) -> Image.Image:
    """Tiles (H, W, 3) uint8 in rows, each with its label below. tile_size: their height on the sheet, in pixels.

    Tiles may differ in size and shape; a column is as wide as the widest. A label may have several lines; one that is wider
    than its column is cut.
    """
    widths = [max(1, tile_size * tile.shape[1] // tile.shape[0]) for tile in tiles]
    width, num_rows = max(widths) + 4, -(-len(tiles) // columns)
    num_lines = [max(len(label.split("\n")) for label in labels[columns * row :][:columns]) for row in range(num_rows)]
    tops = np.cumsum([0, *(tile_size + 5 + 15 * lines for lines in num_lines)]).tolist()
    canvas = Image.new("RGB", (width * columns, tops[-1]), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (tile, label, own_width) in enumerate(zip(tiles, labels, widths, strict=True)):
        x, y = index % columns * width, tops[index // columns]
        canvas.paste(_resized(tile, (own_width, tile_size)), (x + 2, y + 2))
        for line, text in enumerate(label.split("\n")):
            shown, font = drawable(text, size=12)
            place = (x + 3, y + tile_size + 3 + 15 * line)
            draw.text(place, shortened(shown, font, width - 6), fill="black", font=font)
    return canvas


def figure(image: np.ndarray, prompt: str, panels: Sequence[Panel], tile_size: int = 320) -> Image.Image:
    """An image (H, W, 3) uint8 beside one overlay per panel. The prompt is on top, colour bars and scores are below.

    tile_size: the tiles' longer side in pixels. A column is at least as wide as the words of its colour bar.
    """
    small = ImageFont.load_default(size=13)
    prompt, large = drawable(prompt, size=17)
    scale = tile_size / max(image.shape[:2])
    size = tuple(max(1, round(scale * side)) for side in image.shape[1::-1])  # (width, height)
    column = max(size[0], 220) + _GAP
    width = column * (1 + len(panels)) - _GAP + 2 * _MARGIN
    lines = wrapped(prompt, large, width - 2 * _MARGIN)
    top = _MARGIN + 24 * len(lines) + 8
    canvas = Image.new("RGB", (width, top + 22 + size[1] + 56 + _MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + 24 * row), line, fill="black", font=large)
    overlays = [overlay(image, panel.reward_map, map_kind=panel.map_kind) for panel in panels]
    names = ["image", *(panel.scorer for panel in panels)]
    for index, (name, tile) in enumerate(zip(names, [image, *overlays])):
        x = _MARGIN + index * column
        draw.text((x, top), wrapped(name, small, column - _GAP)[0], fill="black", font=small)
        canvas.paste(_resized(tile, size), (x, top + 22))
    for index, panel in enumerate(panels):
        place = (_MARGIN + (index + 1) * column, top + 22 + size[1] + 8)
        _draw_legend(canvas, place, column - _GAP, panel, small)
    return canvas


def drawable(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text as it can be drawn, and the font to draw it with.

    Pillow's own font has Latin letters. Other letters need DejaVu, which comes with matplotlib; it is used if matplotlib is
    installed. A character that the font lacks is written as its code point, such as U+4F60: an empty box would say nothing.
    """
    fonts = [ImageFont.load_default(size=size)]
    package = importlib.util.find_spec("matplotlib")
    dejavu = package and Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    if dejavu and dejavu.is_file():
        fonts.append(ImageFont.truetype(str(dejavu), size))
    lacking = [{char for char in set(text) if not _has_glyph(font, char)} for font in fonts]
    best = min(range(len(fonts)), key=lambda i: len(lacking[i]))  # the first one wins a tie
    return "".join(f"U+{ord(char):04X}" if char in lacking[best] else char for char in text), fonts[best]


def _has_glyph(font: ImageFont.FreeTypeFont, char: str) -> bool:
    # a font draws every character that it lacks like U+FFFF, which is not a character
    return char.isspace() or bytes(font.getmask(char)) != bytes(font.getmask("\uffff"))


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The text in lines of at most `width` pixels. It breaks between words; only a word longer than a line is broken."""
    lines = [""]
    for word in text.split() or [""]:
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, cut with three dots where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _resized(tile: np.ndarray, size: tuple[int, int]) -> Image.Image:
    # enlarged pixels stay squares: what is shown is what was scored
    resample = Image.Resampling.NEAREST if tile.shape[0] < size[1] else Image.Resampling.LANCZOS
    return Image.fromarray(tile).resize(size, resample)


def _draw_legend(canvas: Image.Image, place: tuple[int, int], width: int, panel: Panel, font) -> None:
    x, y = place
    bar = np.linspace(0, 1, width)[None].repeat(10, axis=0)  # (10, width)
    canvas.paste(Image.fromarray(color_map(bar, panel.map_kind)), (x, y))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((x, y, x + width - 1, y + 9), outline=(150, 150, 150))
    low, middle, high = MEANINGS[panel.map_kind]
    for text, at, anchor in ((low, x, "la"), (middle, x + width / 2, "ma"), (high, x + width, "ra")):
        draw.text((at, y + 13), text, fill=(90, 90, 90), font=font, anchor=anchor)
    caption, font = drawable(panel.caption, size=13)
    draw.text((x, y + 32), shortened(caption, font, width), fill="black", font=font)
