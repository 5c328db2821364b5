import io
import weakref

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from flow_grpo.score import Score, check_images, to_images, to_uint8

IMAGES = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
PROMPTS = ["one", "two"]


def test_score_without_map_has_no_valid_map():
    score = Score(reward=torch.tensor([0.5, 1.0]))
    assert score.map_valid.tolist() == [False, False]
    assert score.map_kind is None and score.reward_map is None


def test_score_with_map_is_valid_unless_told_otherwise():
    score = Score(reward=torch.zeros(2), reward_map=torch.rand(2, 4, 4), map_kind="reward")
    assert score.map_valid.tolist() == [True, True]


def test_invalid_image_may_hold_anything_in_its_map():
    reward_map = torch.rand(2, 4, 4)
    reward_map[1] = float("nan")
    valid = torch.tensor([True, False])
    Score(reward=torch.zeros(2), reward_map=reward_map, map_kind="importance", map_valid=valid)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reward": torch.zeros(2, 1)}, "reward must be"),
        ({"reward": torch.zeros(2, dtype=torch.long)}, "reward must be"),
        ({"reward": torch.tensor([0.0, float("nan")])}, "finite"),
        ({"reward": [0.0, 1.0]}, "reward must be .* got list"),
        ({"reward": np.zeros(2, np.float32)}, "reward must be .*ndarray.*give a tensor"),
        ({"details": {"area": [0.0, 1.0]}}, "area.* got list"),
        ({"reward_map": np.zeros((2, 4, 4), np.float32), "map_kind": "reward"}, "reward_map must be .*ndarray"),
        ({"map_valid": [True, False]}, "map_valid must be .* got list"),
        ({"valid": np.ones(2, bool)}, "valid must be .*ndarray"),
        ({"neutral": None}, "neutral must lie in"),
        ({"read": "ab"}, "read must be one text per image, got one string"),
        ({"details": {"area": torch.zeros(3)}}, "area"),
        ({"map_kind": "reward"}, "without a reward_map"),
        ({"map_valid": torch.tensor([True, False])}, "without a reward_map"),
        ({"reward_map": torch.rand(2, 4, 4)}, "map_kind"),
        ({"reward_map": torch.rand(2, 4, 4), "map_kind": "heat"}, "map_kind"),
        ({"reward_map": torch.rand(3, 4, 4), "map_kind": "reward"}, "reward_map must be"),
        ({"reward_map": torch.rand(2, 16), "map_kind": "reward"}, "reward_map must be"),
        ({"reward_map": torch.full((2, 4, 4), 1.5), "map_kind": "reward"}, "1.5"),
        ({"reward_map": torch.full((2, 4, 4), torch.nan), "map_kind": "reward"}, "NaN"),
        ({"reward_map": torch.rand(2, 4, 4), "map_kind": "reward", "map_valid": torch.ones(2)}, "map_valid"),
        ({"valid": torch.ones(2)}, r"valid must be \(2,\) bool"),
        ({"valid": torch.ones(3, dtype=torch.bool)}, r"valid must be \(2,\) bool"),
        (
            {
                "reward_map": torch.rand(2, 4, 4),
                "map_kind": "reward",
                "map_valid": torch.tensor([True, True]),
                "valid": torch.tensor([True, False]),
            },
            "map_valid must be False where valid is",
        ),
    ],
)
def test_wrong_score_says_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        Score(**{"reward": torch.zeros(2)} | fields)


def test_good_images_pass_in_every_float_type():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        check_images(IMAGES.to(dtype), PROMPTS)
    check_images(IMAGES, tuple(PROMPTS), [{}, {}])
    check_images(IMAGES, PROMPTS, [])


def test_rounding_is_tolerated_and_an_overshoot_is_not():
    check_images(torch.full((1, 3, 2, 2), 1 + 5e-5), ["p"])
    with pytest.raises(ValueError, match=r"from 1\.01 to 1\.01"):
        check_images(torch.full((1, 3, 2, 2), 1.01), ["p"])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], r"\(3, 8, 6\)"),
        ([IMAGES[0]], "got list"),
        (IMAGES.permute(0, 2, 3, 1), "permute"),
        (IMAGES[:, :1], "RGB"),
        (IMAGES[:0], "empty batches"),
        ((IMAGES * 255).to(torch.uint8), "/ 255"),
        (IMAGES * 255, "divide 8-bit levels by 255"),
        (IMAGES * 2 - 1, r"\(x \+ 1\) / 2"),
        (IMAGES.clone().index_fill_(3, torch.tensor([2]), torch.nan), "NaN"),
        (IMAGES.clone().index_fill_(3, torch.tensor([2]), torch.inf), "inf"),
    ],
)
def test_bad_images_are_refused_with_a_remedy(images, message):
    with pytest.raises(ValueError, match=message):
        check_images(images, PROMPTS)


@pytest.mark.parametrize("prompts", [["one"], "ab", [], None, iter(PROMPTS)])
def test_prompts_must_be_one_per_image(prompts):
    with pytest.raises(ValueError, match="prompts must be one per image"):
        check_images(IMAGES, prompts)


@pytest.mark.parametrize("prompt", [None, 3, b"bytes", ["nested"]])
def test_a_prompt_that_is_no_text_is_refused_by_its_place(prompt):
    with pytest.raises(ValueError, match=f"prompt 1 must be a string, got {type(prompt).__name__}"):
        check_images(IMAGES, [PROMPTS[0], prompt])


@pytest.mark.parametrize("metadata", [[{}], {"targets": ["HUT"]}, 3, "ab"])
def test_metadata_must_be_one_per_image(metadata):
    with pytest.raises(ValueError, match="metadata must be one mapping per image"):
        check_images(IMAGES, PROMPTS, metadata)


def test_metadata_of_an_image_is_a_mapping_or_none():
    check_images(IMAGES, PROMPTS, [None, {"targets": ["HUT"]}])
    with pytest.raises(ValueError, match="metadata of image 1 must be a mapping, got str"):
        check_images(IMAGES, PROMPTS, [{}, "targets"])


def test_every_8_bit_level_survives_the_way_to_float_and_back():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert np.array_equal(to_uint8(levels.float() / 255)[0, :, :, 0], levels[0, 0].numpy())


def test_uint8_has_channels_last_and_clamps_rounding():
    images = torch.zeros(2, 3, 4, 5)
    images[0, 0, 1, 2] = 1 + 5e-5
    images[0, 2, 1, 2] = -5e-5
    pixels = to_uint8(images)
    assert pixels.shape == (2, 4, 5, 3) and pixels.dtype == np.uint8
    assert pixels[0, 1, 2].tolist() == [255, 0, 0]


def test_every_image_is_valid_unless_told_otherwise():
    assert Score(reward=torch.zeros(2)).valid.tolist() == [True, True]


def test_image_that_could_not_be_scored_has_no_valid_map():
    score = Score(torch.zeros(2), torch.rand(2, 4, 4), "reward", valid=torch.tensor([True, False]))
    assert score.map_valid.tolist() == [True, False]


def test_pictures_become_images():
    red = Image.new("RGB", (4, 2), (255, 0, 51))
    images = to_images([red, np.array(red), red.convert("P")])
    assert images.shape == (3, 3, 2, 4) and images.dtype == torch.float32
    assert all(torch.equal(image, images[0]) for image in images)
    assert images[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_a_transparent_picture_is_laid_on_white():
    assert torch.equal(to_images([Image.new("RGBA", (2, 2), (0, 0, 0, 0))]), torch.ones(1, 3, 2, 2))


@pytest.mark.parametrize(("orientation", "expected"), [(1, [[0, 1, 2], [3, 4, 5]]), (6, [[3, 0], [4, 1], [5, 2]])])
def test_a_photo_is_turned_as_viewers_show_it(orientation, expected):
    """6 is a camera held upright: its pixels are stored as they would lie after a quarter turn to the left."""
    file, picture = io.BytesIO(), Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = picture.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    picture.save(file, "PNG", exif=exif)
    assert to_images([Image.open(file)])[0, 0].mul(255).round().tolist() == expected


def test_a_picture_of_16_bits_keeps_its_greys():
    levels = np.array([[0, 128, 255]])
    picture = Image.fromarray((levels * 257).astype(np.uint16))
    assert to_images([picture])[0, 0].mul(255).round().tolist() == levels.tolist()


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([], "at least one picture"),
        (Image.new("RGB", (2, 2)), "list of pictures, got Image"),
        ([np.zeros((0, 2, 3), dtype=np.uint8)], r"no pixels.*\(0, 2, 3\)"),
        ([Image.new("F", (2, 2))], "mode 'F'.*convert"),
        ([Image.new("I", (2, 2))], "mode 'I'.*convert"),
        ([np.zeros((2, 2, 3), dtype=np.float32)], r"PIL image or an array \(H, W, 3\) uint8, got \(2, 2, 3\) float32"),
        (["photo.png"], "got str"),
        ([Image.new("RGB", (2, 2)), Image.new("RGB", (2, 3))], r"one size, got .*\(2, 2\), \(3, 2\).*resize"),
    ],
)
def test_what_is_no_batch_of_pictures_is_refused(pictures, message):
    with pytest.raises(ValueError, match=message):
        to_images(pictures)


def test_levels_of_the_same_images_are_made_once_and_of_changed_ones_anew():
    images = torch.rand(2, 3, 4, 5)
    levels = to_uint8(images)
    assert to_uint8(images) is levels
    with pytest.raises(ValueError, match="read-only"):
        levels[0] = 0
    assert np.array_equal(to_uint8(images.clone()), levels)
    images.zero_()
    assert not to_uint8(images).any() and levels.any()


@pytest.mark.parametrize("shared", ["from numpy", "with numpy"])
def test_levels_of_memory_that_numpy_changes_are_made_anew(shared):
    """torch counts its own changes of a tensor, and does not see numpy's."""
    images = torch.from_numpy(np.zeros((1, 3, 4, 5), np.float32)) if shared == "from numpy" else torch.zeros(1, 3, 4, 5)
    array = images.numpy()
    assert to_uint8(images).max() == 0
    array[:] = 1
    assert to_uint8(images).min() == 255


def test_levels_live_no_longer_than_their_images():
    images = torch.rand(2, 3, 4, 5)
    levels = weakref.ref(to_uint8(images))
    assert levels() is not None
    del images
    assert levels() is None


def test_images_of_inference_mode_have_levels_too():
    with torch.inference_mode():
        images = torch.rand(2, 3, 4, 5)
        before = to_uint8(images)
        images.zero_()
        assert before.any() and not to_uint8(images).any()


@pytest.mark.parametrize("neutral", [-0.1, 1.5, float("nan")])
def test_a_neutral_outside_of_a_maps_range_is_refused(neutral):
    with pytest.raises(ValueError, match="neutral must lie in"):
        Score(torch.zeros(2), torch.rand(2, 4, 4), "reward", neutral=neutral)
