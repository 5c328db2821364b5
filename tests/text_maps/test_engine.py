import importlib.util
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from flow_grpo.score import to_uint8
from flow_grpo.text_maps.engine import Character, RapidOcr, TextLine, make_engine

QUAD = [[0, 0], [10, 0], [10, 5], [0, 5]]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def character_engine():
    return make_engine("rapidocr", characters=True)


def wide_text(text, font_size=36, size=(320, 96)):
    """An image of one line, the font's advance before each of its letters (and after the last), in pixels."""
    image = Image.new("RGB", size, "white")
    font = ImageFont.load_default(font_size)
    left = (size[0] - font.getlength(text)) / 2
    ImageDraw.Draw(image).text((left, size[1] / 2), text, fill="black", font=font, anchor="lm")
    return image, [left + font.getlength(text[:end]) for end in range(len(text) + 1)]


def content(lines):
    return [(line.text, line.confidence, line.quad.tolist()) for line in lines]


def test_rapidocr_reads_drawn_text_where_it_stands(rapidocr_engine, draw_text):
    (image,) = to_uint8(draw_text("HUT", centre=(24, 44), font_size=16)[None])
    (line,) = rapidocr_engine(image)
    assert line.text == "HUT" and line.confidence > 0.9
    (left, top), (right, bottom) = line.quad.min(0), line.quad.max(0)
    assert 2 < left < 12 and 36 < right < 46 and 30 < top < 40 and 48 < bottom < 58  # drawn in 8..40 by 38..50
    assert line.quad[0].tolist() == [left, top] and line.quad[2].tolist() == [right, bottom]  # clockwise from top left


def test_rapidocr_reads_every_line(rapidocr_engine, draw_text):
    drawn = torch.minimum(draw_text("RED", (64, 30), size=128), draw_text("BOX", (64, 90), size=128))
    (image,) = to_uint8(drawn[None])
    assert [line.text for line in rapidocr_engine(image)] == ["RED", "BOX"]


def test_rapidocr_is_given_bgr(rapidocr_engine, draw_text, monkeypatch):
    image = to_uint8(draw_text("HUT", fill=(0, 0, 255), background=(90, 60, 30))[None])[0]
    seen, read = [], rapidocr_engine._ocr
    monkeypatch.setattr(rapidocr_engine, "_ocr", lambda bgr: seen.append(bgr) or read(bgr))
    assert [line.text for line in rapidocr_engine(image)] == ["HUT"]
    assert np.array_equal(seen[0], image[..., ::-1])


def test_reading_twice_gives_the_same(rapidocr_engine, draw_text):
    image = to_uint8(draw_text("HUT")[None])[0]
    (first,), (second,) = rapidocr_engine(image), rapidocr_engine(image)
    assert (first.text, first.confidence) == (second.text, second.confidence)
    assert np.array_equal(first.quad, second.quad)


def test_rapidocr_logs_nothing(rapidocr_engine, capfd):
    rapidocr_engine(np.zeros((64, 64, 3), dtype=np.uint8))
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("RapidOCR").level == logging.ERROR


def test_recogniser_that_reads_nothing_is_a_failure(rapidocr_engine, monkeypatch):
    detector_only = SimpleNamespace(boxes=np.zeros((2, 4, 2)))
    monkeypatch.setattr(rapidocr_engine, "_ocr", lambda image: detector_only)
    with pytest.raises(RuntimeError, match="recogniser read none"):
        rapidocr_engine(np.zeros((8, 8, 3), dtype=np.uint8))


def test_line_takes_any_corners_and_refuses_wrong_ones():
    assert TextLine(QUAD, "a", 0.5).quad.dtype == np.float32
    for quad in (QUAD[:3], [[0, 0, 1]] * 4, [[0, float("nan")]] * 4):
        with pytest.raises(ValueError, match="quad"):
            TextLine(quad, "a", 0.5)
    for confidence in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="confidence"):
            TextLine(QUAD, "a", confidence)


@pytest.mark.parametrize("text", [None, b"HUT", 3])
def test_text_of_a_line_is_a_string(text):
    with pytest.raises(ValueError, match=f"text must be a string, got {type(text).__name__}"):
        TextLine(QUAD, text, 0.5)


def test_character_lies_within_its_line():
    for confidence, start, end in ((1.1, 0, 1), (-0.1, 0, 1), (float("nan"), 0, 1)):
        with pytest.raises(ValueError, match="confidence"):
            Character("a", confidence, start, end)
    for start, end in ((-0.1, 0.5), (0.5, 0.4), (0.5, 1.1), (float("nan"), 1)):
        with pytest.raises(ValueError, match="0 <= start <= end <= 1"):
            Character("a", 0.5, start, end)


def test_characters_must_spell_the_text():
    characters = (Character("a", 0.9, 0, 0.4), Character("b", 0.5, 0.6, 1))
    assert TextLine(QUAD, "ab", 0.7, characters).characters == characters
    assert TextLine(QUAD, "ab", 0.7).characters is None
    with pytest.raises(ValueError, match="must spell the text 'ba'"):
        TextLine(QUAD, "ba", 0.7, characters)


@pytest.mark.parametrize("text", ["HUT", "Open Late", "Spring 24"])
def test_lines_are_the_same_with_and_without_characters(rapidocr_engine, character_engine, text):
    image = np.array(wide_text(text)[0])
    assert content(rapidocr_engine(image)) == content(character_engine(image)) != []
    assert rapidocr_engine(image)[0].characters is None


@pytest.mark.parametrize("text", ["HUT", "Open Late", "a b c 1 2", "NO PARKING"])
def test_confidence_of_a_line_is_the_mean_of_its_characters(character_engine, text):
    (line,) = character_engine(np.array(wide_text(text)[0].filter(ImageFilter.GaussianBlur(3))))
    assert "".join(character.text for character in line.characters) == line.text
    confidences = [character.confidence for character in line.characters]
    assert len(set(confidences)) > 1
    assert line.confidence == pytest.approx(np.mean(confidences), abs=1e-5)  # RapidOCR rounds both to five places


@pytest.mark.parametrize("text", ["MARKET", "Open Late", "HOTEL 24", "Library"])
def test_characters_stand_where_they_were_drawn(character_engine, text):
    image, edges = wide_text(text)
    (line,) = character_engine(np.array(image))
    assert line.text == text
    left, right = line.quad[0, 0], line.quad[1, 0]
    assert all(a.end == b.start for a, b in zip(line.characters, line.characters[1:]))
    for character, start, end in zip(line.characters, edges[:-1], edges[1:], strict=True):
        centre = left + (character.start + character.end) / 2 * (right - left)
        # a column of the recogniser is 8 of the 48 pixels of a line's height, a third of a letter; corners are rounded
        assert abs(centre - (start + end) / 2) <= 8 / 48 * (line.quad[3, 1] - line.quad[0, 1]) + 1, character


def test_blurred_letter_is_doubted_at_its_own_place(character_engine):
    """Over all letters of some words: its confidence falls, and its neighbours' do not."""
    blurred, others = [], []
    for text in ("MARKET", "LIBRARY", "HOTEL"):
        for index in range(len(text)):
            image, edges = wide_text(text)
            box = (round(edges[index]), 0, round(edges[index + 1]), image.height)
            image.paste(image.crop(box).filter(ImageFilter.GaussianBlur(4)), box)
            for line in character_engine(np.array(image)):
                if len(line.text) == len(text):
                    confidences = [character.confidence for character in line.characters]
                    blurred.append(confidences.pop(index))
                    others += confidences
    assert len(blurred) >= 9  # half of them are read at all
    assert np.mean(blurred) < 0.95 < 0.99 < np.mean(others)


def test_characters_of_text_that_runs_down_run_with_it(character_engine):
    image, edges = wide_text("Open Late")
    (line,) = character_engine(np.rot90(np.array(image), k=-1))  # clockwise
    assert line.text == "Open Late"
    top, bottom = line.quad[0, 1], line.quad[1, 1]
    centres = [top + (character.start + character.end) / 2 * (bottom - top) for character in line.characters]
    drawn = (np.array(edges[:-1]) + np.array(edges[1:])) / 2
    assert np.abs(np.array(centres) - drawn).max() < 12  # a letter is 20 pixels wide


def test_engine_may_be_given_as_an_object():
    def engine(image):
        return []

    assert make_engine(engine) is engine
    with pytest.raises(ValueError, match="takes no options, got characters"):
        make_engine(engine, characters=True)


def test_a_class_is_no_engine():
    with pytest.raises(ValueError, match=r"RapidOcr is the class of an engine; give an object of it, RapidOcr\(...\)"):
        make_engine(RapidOcr)


def test_unknown_option_lists_the_known_ones():
    with pytest.raises(ValueError, match="'rapidocr' has no option weights; known: max_side, characters"):
        make_engine("rapidocr", weights="here")
    with pytest.raises(
        ValueError, match="'paddleocr' has no option engine_name; known: max_side, runtime, weights, characters"
    ):
        make_engine("paddleocr", engine_name="paddle")


def test_unknown_engine_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown OCR engine 'easyocr'; known: paddleocr, ppocrv4, rapidocr"):
        make_engine("easyocr")
    with pytest.raises(ValueError, match="unknown OCR engine None"):
        make_engine(None)


def test_missing_package_names_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ImportError, match=r'pip install "flow-grpo-maps\[ocr\]"'):
        make_engine("rapidocr")


@pytest.mark.parametrize("characters", [False, True])
def test_second_reader_reads_with_weights_of_its_own(rapidocr_engine, draw_text, characters):
    second = make_engine("ppocrv4", characters=characters)
    drawn = torch.minimum(draw_text("RED", (64, 30), size=128), draw_text("BOX", (64, 90), size=128))
    (image,) = to_uint8(drawn[None])
    lines, reference = second(image), rapidocr_engine(image)
    assert [line.text for line in lines] == [line.text for line in reference] == ["RED", "BOX"]
    for line, other in zip(lines, reference, strict=True):
        assert 0 < np.abs(line.quad.mean(0) - other.quad.mean(0)).max() < 8  # the same word, other networks' box
        assert line.confidence > 0.9 and line.confidence != other.confidence
        assert (line.characters is not None) == characters
    assert second(np.full((64, 64, 3), 255, np.uint8)) == []


def test_second_reader_without_its_weights_names_what_brings_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"ch_PP-OCRv4_det_infer.onnx; pip install .*flow-grpo-maps\[gold\]"):
        make_engine("ppocrv4")


def test_missing_weights_are_an_error_and_no_download(monkeypatch, tmp_path):
    import rapidocr

    monkeypatch.setattr(rapidocr, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match="PP-OCRv6_det_small.onnx"):
        make_engine("rapidocr")


def test_telemetry_is_off_before_onnxruntime_is_imported():
    code = (
        "import os, sys; from flow_grpo.text_maps.engine import make_engine\n"
        "assert 'onnxruntime' not in sys.modules and 'rapidocr' not in sys.modules\n"
        "make_engine('rapidocr'); assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("engine", ["rapidocr", "paddleocr"])
def test_a_smaller_side_shrinks_the_image_for_the_detector_alone(engine, draw_text):
    """On 512 pixels a side of 64 loses letters that the recogniser, given the box, would read."""
    image = to_uint8(
        torch.minimum(draw_text("HUT", (256, 100), 12, 512), draw_text("LARGE", (256, 350), 120, 512))[None]
    )[0]
    (small, large), (only,) = make_engine(engine)(image), make_engine(engine, max_side=64)(image)
    assert (small.text, large.text, only.text) == ("HUT", "LARGE", "LARGE")
    # boxes are looser by a few pixels of the shrunk image, each of which is 8 of the image's
    assert np.abs(only.quad - large.quad).max() < 6 * 8


@pytest.mark.parametrize("engine", ["rapidocr", "paddleocr"])
def test_a_side_of_nothing_is_refused(engine):
    with pytest.raises(ValueError, match="max_side must be 32 pixels or more, got 0"):
        make_engine(engine, max_side=0)
