import io

import pytest
import torch
from PIL import Image

from flow_grpo.score import to_uint8
from flow_grpo.scorers import make_scorer


def images():
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    return torch.stack([torch.full((3, 64, 64), 0.5), noise * 0.2, noise])


def test_reward_is_minus_the_size_of_the_file():
    score = make_scorer("jpeg_compressibility")(images(), ["p"] * 3)
    for image, reward in zip(to_uint8(images()), score.reward.tolist()):
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=95)
        assert reward == pytest.approx(-len(file.getvalue()) / 1000 / 500)
    assert torch.equal(score.details["kilobytes"], -500 * score.reward)


def test_emptier_images_score_higher():
    rewards = make_scorer("jpeg_compressibility")(images(), ["p"] * 3).reward
    assert rewards[0] > rewards[1] > rewards[2]


def test_it_has_no_map():
    score = make_scorer("jpeg_compressibility")(images(), ["p"] * 3)
    assert score.reward_map is None and score.map_kind is None


def test_bad_images_are_refused():
    with pytest.raises(ValueError, match="255"):
        make_scorer("jpeg_compressibility")(images() * 255, ["p"] * 3)
