import logging

import pytest
import torch

from flow_grpo.ocr_engine import TextLine
from flow_grpo.ocr_reader import make_reader

QUAD = [[0, 0], [10, 0], [10, 5], [0, 5]]


class Grey:
    """Reads an image's first level as its text; raises at `bad` levels, the first `failures` times."""

    def __init__(self, bad=(), failures=2):
        self.bad, self.failures, self.tries = bad, failures, []

    def __call__(self, image):
        level = int(image[0, 0, 0])
        self.tries.append(level)
        if level in self.bad and self.tries.count(level) <= self.failures:
            raise OSError(f"cannot read {level}")
        return [TextLine(QUAD, str(level), 1.0)]


def greys(*levels):
    return (torch.tensor(levels) / 255).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def texts(lines):
    return [image_lines and image_lines[0].text for image_lines in lines]


def test_serial_reader_keeps_the_order():
    assert texts(make_reader(Grey()).submit(greys(51, 204, 102))()) == ["51", "204", "102"]


def test_serial_reader_reads_a_failed_image_once_more():
    engine = Grey(bad=[204], failures=1)
    assert texts(make_reader(engine).submit(greys(51, 204, 102))()) == ["51", "204", "102"]
    assert engine.tries == [51, 204, 204, 102]


def test_image_that_fails_twice_is_none_and_logged(caplog):
    with caplog.at_level(logging.WARNING):
        assert texts(make_reader(Grey(bad=[204])).submit(greys(51, 204, 102))()) == ["51", None, "102"]
    assert "image 1 of 3 could not be read: OSError: cannot read 204" in caplog.text


def test_batch_of_which_nothing_can_be_read_raises_its_cause():
    with pytest.raises(RuntimeError, match="none of 2 images could be read") as caught:
        make_reader(Grey(bad=[1, 2])).submit(greys(1, 2))()
    assert str(caught.value.__cause__) == "cannot read 2"


def test_images_may_change_once_they_are_submitted():
    images = greys(51, 204).clone()
    lines = make_reader(Grey()).submit(images)
    images.zero_()
    assert texts(lines()) == ["51", "204"]
