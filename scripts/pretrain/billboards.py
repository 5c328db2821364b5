"""The billboards: the whole scenes that tiny-clip was made with, one or two shapes above one large sign.

    a red circle and a blue sign that says "TOMAS"

They are the signs world's in colours, shapes and backgrounds, easier to read and harder to spell: 3 to 5 letters.
"""

from functools import cache
from itertools import product

import numpy as np
from PIL import Image

from scripts.pretrain.signs_world import (
    BACKGROUNDS,
    COLORS,
    CONSONANTS,
    INK,
    SHAPES,
    SIZE,
    SUPERSAMPLING,
    VOWELS,
    Scene,
    SceneObject,
    SignSize,
    downsample,
    ink_box,
    shape_mask,
    sign_masks,
)

WORD_LENGTHS = (3, 4, 5)
NUM_WORDS = {"train": 1800, "test": 384}
BILLBOARD = SignSize(half_width=30, half_height=10, corner=3, pitch=11, letter=15)


@cache
def billboard_words(split: str) -> tuple[str, ...]:
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


def make_billboard(seed: int, split: str = "train", word: str | None = None) -> Scene:
    """Render the billboard that belongs to a seed. word: capitals, instead of the word that the seed would draw."""
    rng = np.random.default_rng(seed)
    drawn = billboard_words(split)[rng.integers(len(billboard_words(split)))]
    word = drawn if word is None else word
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    num_shapes = int(rng.integers(1, 3))
    kinds = [SHAPES[i] for i in rng.choice(len(SHAPES), num_shapes, replace=False)]
    *shape_colors, sign_color = (list(COLORS)[i] for i in rng.choice(len(COLORS), num_shapes + 1, replace=False))

    canvas = Image.new("RGB", (SIZE * SUPERSAMPLING,) * 2, background)
    objects = []
    for index, (kind, color) in enumerate(zip(kinds, shape_colors)):
        center_x = SIZE * (2 * index + 1) / (2 * num_shapes) + rng.uniform(-3, 3)
        center_y, radius = 17 + rng.uniform(-2, 2), rng.uniform(10, 12)
        mask = shape_mask(kind, center_x, center_y, radius)
        canvas.paste(COLORS[color], mask=mask)
        objects.append(SceneObject(f"{color} {kind}", downsample(mask)))
    board, ink = sign_masks(word, 32 + rng.uniform(-1.5, 1.5), 48 + rng.uniform(-3, 3), BILLBOARD)
    canvas.paste(COLORS[sign_color], mask=board)
    canvas.paste(INK, mask=ink)
    objects.append(SceneObject(f"{sign_color} sign", downsample(board), word, ink_box(downsample(ink))))

    *shapes, sign = (f"a {thing.name}" for thing in objects)
    return Scene(
        caption=f'{", ".join(shapes)} and {sign} that says "{word}"',
        image=np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX)),
        objects=tuple(objects),
    )
