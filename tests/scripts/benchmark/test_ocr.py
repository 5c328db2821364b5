import math

import torch

from scripts.benchmark.ocr import draw_signs, measure, ratio, reader_row


def test_drawn_signs_are_legible_and_always_the_same():
    for size in (64, 256):
        images, targets = draw_signs(size, num_images=6)
        assert images.shape == (6, 3, size, size) and len(set(targets)) == 6
        assert torch.equal(images, draw_signs(size, num_images=6)[0])
        (figures,) = measure({"row": reader_row("rapidocr", 0)}, images, targets, repeats=1).values()
        assert figures["similarity"] > 0.97  # some of these words hold letters that look alike
        assert len(figures["images_per_second"]) == 1


def test_accuracy_compares_all_that_was_read_with_the_target():
    rows = {"half": lambda images: ["AB", "abCX"], "all": lambda images: ["A b", "cd"]}
    figures = measure(rows, torch.zeros(2, 3, 4, 4), ["ab", "CD"], repeats=1)
    assert figures["all"]["exact"] == figures["all"]["similarity"] == 1
    assert (
        figures["half"]["exact"] == 0.5 and figures["half"]["similarity"] == (1 + 0.25) / 2
    )  # abcx -> cd: 3 of 4 edits


def test_ratio_is_the_median_of_each_rounds_own():
    rates = {"pooled": [2.0, 30.0, 6.0], "serial": [1.0, 10.0, 6.0]}
    figures = {name: {"images_per_second": each} for name, each in rates.items()}
    assert ratio(figures, "pooled", "serial") == 2.0
    assert math.isnan(ratio(figures, "pooled", "loop"))
