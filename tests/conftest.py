"""Shared by all tests: the real OCR engine, loaded once, and images of drawn text."""

import os

# Before torch is imported: its spinning threads slow a neighbouring OCR engine many times over.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from flow_grpo.text_maps.engine import make_engine


@pytest.fixture(scope="session")
def rapidocr_engine():
    return make_engine("rapidocr")


@pytest.fixture(scope="session")
def draw_text():
    """draw_text(text, centre=(x, y), font_size, size) -> (3, size, size) float image, black on white."""

    def draw(text, centre=None, font_size=22, size=64, fill="black", background="white"):
        image = Image.new("RGB", (size, size), background)
        font = ImageFont.load_default(font_size)
        ImageDraw.Draw(image).text(centre or (size / 2, size / 2), text, fill=fill, font=font, anchor="mm")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255  # (3, size, size)

    return draw
