"""The table that Tesseract writes becomes lines; where the program is installed, it reads what is drawn."""

import shutil

import numpy as np
import pytest
import torch

from flow_grpo.score import to_uint8
from flow_grpo.text_maps import tesseract
from flow_grpo.text_maps.engine import make_engine
from flow_grpo.text_maps.tesseract import parse_words

COLUMNS = [
    "level",
    "page_num",
    "block_num",
    "par_num",
    "line_num",
    "word_num",
    "left",
    "top",
    "width",
    "height",
    "conf",
    "text",
]
# A page, a word and its neighbour in one line, a word of blanks, and a quote alone in the next block.
ROWS = [
    ["1", "1", "0", "0", "0", "0", "0", "0", "256", "256", "-1", ""],
    ["5", "1", "1", "1", "1", "1", "40", "80", "60", "20", "90.0", "NEW"],
    ["5", "1", "1", "1", "1", "2", "110", "76", "40", "28", "60.0", "ORDERS"],
    ["5", "1", "1", "1", "2", "1", "0", "0", "256", "256", "95.0", " "],
    ["5", "1", "2", "1", "1", "1", "8", "200", "4", "8", "30.5", '"'],
]
TABLE = "\n".join("\t".join(row) for row in [COLUMNS, *ROWS]) + "\n"


def test_words_of_a_line_are_one_line_in_the_images_own_pixels():
    (quad, text, confidence), (_, quote, doubt) = parse_words(TABLE, scale=4)
    assert text == "NEW ORDERS" and quote == '"' and doubt == pytest.approx(0.305)
    assert quad.tolist() == [[10, 19], [37.5, 19], [37.5, 26], [10, 26]]
    assert confidence == pytest.approx((3 * 0.9 + 6 * 0.6) / 9)  # by length


def test_a_table_without_words_has_no_lines():
    assert parse_words("\t".join(COLUMNS) + "\n" + "\t".join(ROWS[0]) + "\n") == []


def test_missing_program_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(tesseract.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="apt-get install tesseract-ocr"):
        make_engine("tesseract")


if shutil.which("tesseract"):  # a system's package, which pip cannot bring

    def test_it_reads_drawn_text_where_it_stands(draw_text):
        drawn = torch.minimum(draw_text("RED", (64, 30), size=128), draw_text("BOX", (64, 90), size=128))
        engine = make_engine("tesseract")
        red, box = engine(to_uint8(drawn[None])[0])
        assert (red.text, box.text) == ("RED", "BOX") and min(red.confidence, box.confidence) > 0.5
        assert np.abs(red.quad.mean(0) - (64, 30)).max() < 4 and np.abs(box.quad.mean(0) - (64, 90)).max() < 4
        assert engine(np.full((64, 64, 3), 255, np.uint8)) == []

    def test_a_language_that_is_not_there_is_refused():
        with pytest.raises(ValueError, match="no language 'tlh', but .*eng"):
            make_engine("tesseract", language="tlh")
