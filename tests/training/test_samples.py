"""Samples to look at: images with their scores, as rows of a table and on a sheet."""

import numpy as np
import pytest
import torch

from flow_grpo.map_overlay import overlay
from flow_grpo.score import Score, to_uint8
from flow_grpo.training.samples import Sample, make_samples, sheet


def grey_map(images, prompts, metadata=None):
    """Brightness and where it is. The second image of a batch has no valid map."""
    valid = torch.arange(len(images)) != 1
    return Score(images.mean(dim=(1, 2, 3)), images.mean(dim=1), "importance", map_valid=valid)


def darkness(images, prompts, metadata=None):
    """The prompt "unreadable" cannot be scored."""
    valid = torch.tensor([prompt != "unreadable" for prompt in prompts])
    return Score(1 - images.mean(dim=(1, 2, 3)), valid=valid)


def samples_of(images, prompts):
    """The samples of a batch, all of it, by two scorers."""
    scores = {"grey": grey_map(images, prompts), "dark": darkness(images, prompts)}
    return make_samples(to_uint8(images), prompts, scores, {"grey": 2.0, "dark": 1.0})


def some_images(batch, seed=0):
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def solid(level):
    return np.full((8, 8, 3), level, np.uint8)


def sample(prompt='a sign that says "HUT"', reward=0.5, overlays=None, **changes):
    return Sample(prompt, solid(40), reward, {"own": reward}, overlays or {}, **changes)


# Making


def test_a_sample_shows_what_was_read_beside_what_was_asked_for():
    images, prompts = some_images(3), ['a sign that says "HUT"'] * 3
    score = Score(torch.ones(3), read=("H UT", "HAT / 2", ""))
    kept = make_samples(to_uint8(images), prompts, {"ocr": score}, {"ocr": 1.0})
    assert [each.row()["read/ocr"] for each in kept] == ["H UT", "HAT / 2", ""]
    assert [each.label() for each in kept] == ["HUT\n1.00", "HUT\nread HAT / 2\n1.00", "HUT\nnothing read\n1.00"]


def test_a_sample_has_its_rewards_and_its_map_over_the_image():
    images = some_images(1)
    (kept,) = samples_of(images.requires_grad_(), ["a"])
    brightness = images.mean().item()
    assert kept.rewards == pytest.approx({"grey": brightness, "dark": 1 - brightness})
    assert kept.reward == pytest.approx(brightness + 1)  # 2 b + (1 - b)
    expected = overlay(to_uint8(images)[0], images.detach()[0].mean(dim=0).numpy(), map_kind="importance")
    assert list(kept.overlays) == ["grey"] and np.array_equal(kept.overlays["grey"], expected)


def test_what_is_not_valid_is_left_out():
    without_map, unscored = samples_of(some_images(3), ["a", "b", "unreadable"])[1:]
    assert without_map.overlays == {"grey": None} and without_map.reward is not None
    assert unscored.reward is None and unscored.rewards == {"grey": None, "dark": None}


# A row of a table


def test_a_row_of_one_reward_names_it_once():
    picture = solid(7)
    row = sample(overlays={"own": picture}).row()
    assert list(row) == ["prompt", "image", "map/own", "reward"]
    assert row["map/own"] is picture and row["reward"] == 0.5


def test_a_row_says_under_which_control_its_advantage_was_spread():
    assert "control" not in sample(advantage=1.0).row()
    assert sample(advantage=1.0, control="rolled").row()["control"] == "rolled"


def test_a_row_of_several_rewards_and_an_advantage_has_a_column_for_each():
    row = Sample("a", solid(0), 0.7, {"one": 0.5, "two": 0.2}, {}, advantage=-1.5).row()
    assert row | {"image": None} == dict(prompt="a", image=None, reward=0.7, one=0.5, two=0.2, advantage=-1.5)


@pytest.mark.parametrize(
    "shown, label",
    [
        (sample(), "HUT\n0.50"),
        (sample(advantage=-0.25), "HUT\n0.50 -0.2"),
        (sample(prompt="a red circle", advantage=1.0), "0.50 +1.0"),
        (sample(prompt='a "GRAND OPENING" and a "SALE"'), "GRAND OPENING / SALE\n0.50"),
        (sample(prompt='"ON" and "UP"', read={"ocr": "up / ON"}), "ON / UP\n0.50"),
        (sample(prompt='"ON" and "UP"', read={"ocr": "ON"}), "ON / UP\nread ON\n0.50"),
        (sample(prompt='a "GRAND OPENING"', read={"ocr": "GRAND / OPENING"}), "GRAND OPENING\n0.50"),
        (sample(reward=None, advantage=0.0), "HUT\nunscored"),
    ],
)
def test_a_label_says_what_was_asked_for_and_what_it_earned(shown, label):
    assert shown.label() == label


# A sheet: tiles of 128 pixels, 4 beside, and below 5 and 15 per line of the row's longest label
IMAGES, MAPS = 163, 148  # heights of a row of images, with two lines below, and of one of maps


@pytest.mark.parametrize("overlays", [{}, {"own": solid(90)}])
def test_a_sheet_shows_each_image_over_its_map(overlays):
    picture = np.asarray(sheet([sample(overlays=overlays)] * 2, columns=2))
    assert picture.shape[:2] == (IMAGES + MAPS * len(overlays), 2 * 132)
    assert (picture[2:130, 134:262] == 40).all()
    assert not overlays or (picture[IMAGES + 2 : IMAGES + 130, 134:262] == 90).all()


def test_several_maps_have_a_named_row_each():
    picture = np.asarray(sheet([sample(overlays={"one": solid(90), "two": solid(160)})] * 3, columns=2))
    assert picture.shape[:2] == (2 * (IMAGES + 2 * MAPS), 2 * 132)
    for pair, row, level in ((0, 0, 90), (0, 1, 160), (1, 0, 90), (1, 1, 160)):
        top = pair * (IMAGES + 2 * MAPS) + IMAGES + row * MAPS
        assert (picture[top + 2 : top + 130, 2:130] == level).all()
        assert (picture[top + 130 : top + 148, :132] < 128).any()  # the name, under the first of the row


def test_a_sheet_leaves_the_places_of_missing_samples_and_maps_white():
    samples = [sample(overlays={"own": None}), *[sample(overlays={"own": solid(90)})] * 2]
    picture = np.asarray(sheet(samples, columns=2))
    maps = picture[IMAGES + 2 : IMAGES + 130]
    assert (maps[:, 2:130] == 255).all() and (maps[:, 134:262] == 90).all()
    assert (picture[IMAGES + MAPS + 2 :, 134:262] == 255).all()
