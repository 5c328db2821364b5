"""A size as a configuration gives it."""

import pytest

from flow_grpo.training.image_size import image_size


@pytest.mark.parametrize("resolution, size", [(512, (512, 512)), ((512, 768), (512, 768)), ([64, 96], (64, 96))])
def test_a_side_or_both_are_height_and_width(resolution, size):
    assert image_size(resolution) == size


@pytest.mark.parametrize("resolution", [0, 512.0, "512", (512,), (512, -16), (512, 512.5), (1, 2, 3)])
def test_what_is_no_size_is_refused_with_an_example(resolution):
    with pytest.raises(ValueError, match=r"must be a side in pixels, or \(height, width\), for instance \(512, 768\)"):
        image_size(resolution)
