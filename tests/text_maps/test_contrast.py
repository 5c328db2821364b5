"""Text that OCR reads and people do not see, and text that is faint, thin or coloured and easily read."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from flow_grpo.scorers import make_scorer
from flow_grpo.text_maps.contrast import VisibleText, contrast
from flow_grpo.text_maps.engine import TextLine
from scripts.pretrain.signs_world import make_scene

SIZE = 128
WHOLE = np.array([[20, 40], [108, 40], [108, 88], [20, 88]])
SMALL = np.array([[38, 56], [90, 56], [90, 72], [38, 72]])
ENOUGH = 16  # what the pages recommend


def drawn(ink, ground=255, font_size=24):
    """An image of "MARKET" in a colour on a ground, which is a colour or an image."""
    image = Image.fromarray(np.broadcast_to(np.asarray(ground, dtype=np.uint8), (SIZE, SIZE, 3)))
    font = ImageFont.load_default(font_size)
    ImageDraw.Draw(image).text((SIZE / 2, SIZE / 2), "MARKET", ink, font, anchor="mm")
    return np.array(image)


@pytest.mark.parametrize("difference", [3, 8, 40, 255])
@pytest.mark.parametrize(("font_size", "box"), [(24, WHOLE), (9, WHOLE), (9, SMALL)])
def test_contrast_is_the_difference_between_ink_and_ground(difference, font_size, box):
    found = contrast(drawn((255 - difference,) * 3, font_size=font_size), box)
    assert 0.8 * difference <= found <= 1.3 * difference + 1  # thin strokes are mixed with the ground; levels are whole


def test_a_turned_line_has_the_contrast_of_an_upright_one():
    image = drawn((200,) * 3)
    turned = np.ascontiguousarray(np.rot90(image, -1))  # reads downwards: a place (x, y) goes to (SIZE - y, x)
    quad = np.stack([SIZE - WHOLE[:, 1], WHOLE[:, 0]], axis=1)
    assert contrast(turned, quad) == pytest.approx(contrast(image, WHOLE), abs=1)


def test_a_shade_over_the_box_is_no_contrast_and_neither_is_what_lies_outside_of_the_image():
    shade = np.linspace(130, 190, SIZE)[:, None, None].repeat(SIZE, 1).repeat(3, 2).astype(np.uint8)
    assert contrast(shade, WHOLE) < 8  # 22 levels from its upper edge to its lower one
    assert contrast(np.full((SIZE, SIZE, 3), 200, np.uint8), WHOLE - 60) == 0
    assert contrast(shade, WHOLE + 1000) == 0


@pytest.mark.parametrize(
    ("ink", "ground"), [((200, 100, 100), (100, 148, 100)), ((0, 0, 255), 0), ((255, 255, 0), 255), ((230,) * 3, 255)]
)
def test_coloured_and_faint_text_stands_out_enough(ink, ground):
    """The first pair has one lightness; blue on black and yellow on white have nearly one."""
    assert contrast(drawn(ink, ground, font_size=9), WHOLE) > ENOUGH


def test_a_faint_line_keeps_its_text_and_loses_its_confidence():
    def read(image):
        return [TextLine(WHOLE, "MARKET", 0.9)]

    (faint,), (clear,) = (VisibleText(read, ENOUGH)(drawn((level,) * 3)) for level in (250, 200))
    assert (faint.text, faint.confidence) == ("MARKET", 0) and clear.confidence == 0.9
    with pytest.raises(ValueError, match=r"\[0, 255\] grey levels, got -1"):
        make_scorer("ocr", engine=read, min_contrast=-1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_text_that_nobody_sees_earns_nothing_if_a_contrast_is_asked_for(num_workers):
    hidden, clear = drawn((249,) * 3), drawn((0,) * 3)
    images = torch.from_numpy(np.stack([hidden, clear])).permute(0, 3, 1, 2) / 255
    prompts = ['a sign that says "MARKET"'] * 2
    scorer = make_scorer("ocr_map", num_workers=num_workers, min_contrast=ENOUGH)
    score = scorer(images, prompts)
    assert score.reward[0] == 0 and score.reward[1] > 0.9 and score.read == ("MARKET", "MARKET")
    assert score.reward_map[0].min() == 0  # and the box takes the blame
    if not num_workers:
        assert make_scorer("ocr_map")(images, prompts).reward.min() > 0.9
        assert make_scorer("ocr", min_contrast=ENOUGH)(images, prompts).reward.tolist() == [0, 1]


def test_no_true_sign_is_lost():
    scenes = [make_scene(seed) for seed in range(12)]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2) / 255
    prompts = [scene.caption for scene in scenes]
    every, seen = (make_scorer("ocr_map", min_contrast=least)(images, prompts) for least in (0, ENOUGH))
    assert torch.equal(every.reward, seen.reward) and torch.equal(every.reward_map, seen.reward_map)
