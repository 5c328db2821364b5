import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flow_grpo.ocr_engine import Character, TextLine, make_engine, read_images
from flow_grpo.score import to_uint8

QUAD = [[0, 0], [10, 0], [10, 5], [0, 5]]


def test_rapidocr_reads_drawn_text_where_it_stands(rapidocr_engine, draw_text):
    (lines,) = read_images(rapidocr_engine, draw_text("HUT", centre=(24, 44), font_size=16)[None])
    (line,) = lines
    assert line.text == "HUT" and line.confidence > 0.9
    (left, top), (right, bottom) = line.quad.min(0), line.quad.max(0)
    assert 2 < left < 12 and 36 < right < 46 and 30 < top < 40 and 48 < bottom < 58  # drawn in 8..40 by 38..50
    assert line.quad[0].tolist() == [left, top] and line.quad[2].tolist() == [right, bottom]  # clockwise from top left


def test_rapidocr_reads_every_line(rapidocr_engine, draw_text):
    image = torch.minimum(draw_text("RED", (64, 30), size=128), draw_text("BOX", (64, 90), size=128))
    (lines,) = read_images(rapidocr_engine, image[None])
    assert [line.text for line in lines] == ["RED", "BOX"]


def test_rapidocr_is_given_bgr(rapidocr_engine, draw_text, monkeypatch):
    image = to_uint8(draw_text("HUT", fill=(0, 0, 255), background=(90, 60, 30))[None])[0]
    seen, read = [], rapidocr_engine._ocr
    monkeypatch.setattr(rapidocr_engine, "_ocr", lambda bgr: seen.append(bgr) or read(bgr))
    assert [line.text for line in rapidocr_engine(image)] == ["HUT"]
    assert np.array_equal(seen[0], image[..., ::-1])


@pytest.mark.parametrize("image", [np.zeros((64, 64, 3)), np.full((64, 64, 3), 255), np.full((1, 1, 3), 128)])
def test_no_text_is_an_empty_list(rapidocr_engine, image):
    assert rapidocr_engine(image.astype(np.uint8)) == []


def test_noise_is_an_empty_list_or_lines_within_the_image(rapidocr_engine):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for line in rapidocr_engine(noise):
        assert 0 <= line.quad.min() and line.quad.max() <= 64


def test_text_that_touches_the_border_is_read(rapidocr_engine, draw_text):
    (lines,) = read_images(rapidocr_engine, draw_text("HUT", centre=(21, 8))[None])
    assert [line.text for line in lines] == ["HUT"]


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


def test_images_are_read_in_order():
    def brightness(image):
        return [TextLine(QUAD, str(image[0, 0, 0]), 1.0)]

    images = torch.tensor([0.2, 0.8, 0.4]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    assert [lines[0].text for lines in read_images(brightness, images)] == ["51", "204", "102"]


def test_line_takes_any_corners_and_refuses_wrong_ones():
    assert TextLine(QUAD, "a", 0.5).quad.dtype == np.float32
    for quad in (QUAD[:3], [[0, 0, 1]] * 4, [[0, float("nan")]] * 4):
        with pytest.raises(ValueError, match="quad"):
            TextLine(quad, "a", 0.5)
    for confidence in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="confidence"):
            TextLine(QUAD, "a", confidence)


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


def test_engine_may_be_given_as_an_object():
    def engine(image):
        return []

    assert make_engine(engine) is engine


def test_unknown_engine_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown OCR engine 'tesseract'; known: paddleocr, rapidocr"):
        make_engine("tesseract")
    with pytest.raises(ValueError, match="unknown OCR engine None"):
        make_engine(None)


def test_missing_package_names_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ImportError, match=r'pip install "flow-grpo-maps\[ocr\]"'):
        make_engine("rapidocr")


def test_missing_weights_are_an_error_and_no_download(monkeypatch, tmp_path):
    import rapidocr

    monkeypatch.setattr(rapidocr, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match="PP-OCRv6_det_small.onnx"):
        make_engine("rapidocr")


def test_telemetry_is_off_before_onnxruntime_is_imported():
    code = (
        "import os, sys; from flow_grpo.ocr_engine import make_engine\n"
        "assert 'onnxruntime' not in sys.modules and 'rapidocr' not in sys.modules\n"
        "make_engine('rapidocr'); assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
