"""The signs world: the same scene from the same seed, and everything that the caption says where the masks say it is."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from flow_grpo.scorers import make_scorer
from scripts.pretrain.signs_world import (
    BACKGROUNDS,
    COLORS,
    CONSONANTS,
    HELD_OUT,
    INK,
    NUM_SIGNS,
    NUM_WORDS,
    PAIR_SHAPES,
    SHAPES,
    SIZE,
    VOWELS,
    make_pair,
    make_scene,
    words,
)

SEEDS = range(24)


def test_a_seed_gives_the_same_scene_every_time():
    for seed in SEEDS:
        one, two = (make_scene(seed, worn_share=0.3, wrong_share=0.3) for _ in range(2))
        assert one.caption == two.caption and np.array_equal(one.image, two.image)
        assert [sign.text_box for sign in one.signs] == [sign.text_box for sign in two.signs]


def test_seeds_give_different_scenes():
    assert len({make_scene(seed).image.tobytes() for seed in SEEDS}) == len(SEEDS)


def test_the_splits_share_no_word():
    train, test = words("train"), words("test")
    assert {"train": len(set(train)), "test": len(set(test))} == NUM_WORDS and not set(train) & set(test)


def test_words_are_consonant_vowel_consonant():
    for word in (*words("train"), *words("test")):
        assert re.fullmatch(f"[{CONSONANTS}][{VOWELS}][{CONSONANTS}]", word)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_scene_takes_its_words_from_its_split(split):
    assert all(sign.word in words(split) for seed in SEEDS for sign in make_scene(seed, split).signs)


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'valid'.*test.*train"):
        words("valid")


def test_caption_names_the_shape_then_each_sign_and_its_word():
    for seed in SEEDS:
        scene = make_scene(seed)
        shape, *signs = scene.objects
        assert re.fullmatch(f"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})", shape.name) and not shape.word
        assert scene.signs == tuple(signs)
        said = [f"a {shape.name}", *(f'a {sign.name} "{sign.word}"' for sign in signs)]
        assert scene.caption == f"{', '.join(said[:-1])} and {said[-1]}"


def test_scenes_have_as_many_signs_as_stated():
    counts = Counter(len(make_scene(seed).signs) for seed in range(200))
    assert {n: counts[n] / 200 for n in counts} == pytest.approx(NUM_SIGNS, abs=0.1)  # three standard deviations


def test_objects_and_words_of_a_scene_differ():
    for seed in SEEDS:
        scene = make_scene(seed)
        colors = [thing.name.split()[0] for thing in scene.objects]
        assert len(set(colors)) == len(colors)
        assert len({sign.word for sign in scene.signs}) == len(scene.signs)


@pytest.mark.parametrize("anywhere", [False, True])
def test_masks_do_not_overlap_and_signs_share_no_row(anywhere):
    for seed in range(200):
        scene = make_scene(seed, anywhere=anywhere)
        assert sum(thing.mask.astype(int) for thing in scene.objects).max() == 1
        assert sum(sign.mask.any(axis=1).astype(int) for sign in scene.signs).max() == 1


def test_signs_stand_in_slots_and_the_shape_in_a_row_without_one():
    for seed in range(200):
        shape, *signs = make_scene(seed).objects
        rows = []
        for thing, width in ((shape, 16), *((sign, 32) for sign in signs)):
            ys, xs = (np.flatnonzero(thing.mask.any(axis)) for axis in (1, 0))
            assert ys[0] // 16 == ys[-1] // 16 and xs[0] // width == xs[-1] // width, "inside one slot, or half of one"
            rows.append(ys[0] // 16)
        assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("anywhere", [False, True])
def test_signs_stand_all_over_the_image(anywhere):
    """So no constant map finds them."""
    covered = sum(sign.mask.astype(int) for seed in range(200) for sign in make_scene(seed, anywhere=anywhere).signs)
    quarters = covered.reshape(2, SIZE // 2, 2, SIZE // 2).sum(axis=(1, 3)) / covered.sum()
    assert quarters.min() > 0.2


def test_one_scenes_signs_say_little_of_the_next_ones():
    """So the map of another image is of no use: it covers the signs about as often as any place of the same size would."""
    masks = [np.any([sign.mask for sign in make_scene(seed).signs], axis=0) for seed in range(201)]
    shared = np.mean([one[other].mean() for one, other in zip(masks, masks[1:])])
    assert shared == pytest.approx(np.mean(masks), abs=0.05)  # three standard deviations


def test_anywhere_moves_the_objects_off_the_slots_and_keeps_the_caption():
    one, other = make_scene(5), make_scene(5, anywhere=True)
    assert one.caption == other.caption and not np.array_equal(one.image, other.image)
    tops = {
        int(np.flatnonzero(sign.mask.any(1))[0]) // 8
        for seed in range(50)
        for sign in make_scene(seed, anywhere=True).signs
    }
    assert tops == set(range(7)), "every row of cells that a sign fits into"


def test_most_pixels_of_a_mask_have_the_named_colour():
    for seed in SEEDS:
        scene = make_scene(seed)
        for thing in scene.objects:
            color = COLORS[thing.name.split()[0]]
            # letters cover half of a sign, and a pixel on their edges or on a star is mixed
            assert (scene.image[thing.mask] == color).all(axis=1).mean() > 0.2, (seed, thing.name)


def test_pixels_outside_all_masks_are_background():
    for seed in SEEDS:
        scene = make_scene(seed)
        covered = np.any([thing.mask for thing in scene.objects], axis=0)
        rest = scene.image[~covered]
        background = max(BACKGROUNDS, key=lambda color: (rest == color).all(axis=1).sum())
        # a pixel that an object covers by less than half belongs to no mask and is mixed
        assert (rest == background).all(axis=1).mean() > 0.9


def test_text_box_holds_all_the_ink_and_touches_it_on_every_side():
    for seed in SEEDS:
        scene = make_scene(seed)
        for sign in scene.signs:
            left, top, right, bottom = sign.text_box
            assert sign.mask[top:bottom, left:right].all(), "the word stands on its sign"
            ink = sign.mask & (np.abs(scene.image.astype(int) - INK).max(axis=2) < 60)
            rows, columns = ink.nonzero()
            # a pixel under half of ink is left out of the box, and so is one that looks lighter than it is
            assert np.abs(np.array([columns.min() - left, rows.min() - top])).max() <= 1
            assert np.abs(np.array([columns.max() + 1 - right, rows.max() + 1 - bottom])).max() <= 1


def test_given_words_replace_the_drawn_ones_and_nothing_else():
    drawn = make_scene(3)
    asked = ["HUT", "BED", "MOP"][: len(drawn.signs)]
    given = make_scene(3, words_shown=asked)
    assert [sign.word for sign in given.signs] == asked and given.caption.split('"')[1::2] == asked
    for one, other in zip(drawn.objects, given.objects, strict=True):
        assert one.name == other.name and np.array_equal(one.mask, other.mask)
    boards = np.any([sign.mask for sign in given.signs], axis=0)
    assert np.array_equal(drawn.image[~boards], given.image[~boards])


def test_image_is_uint8_rgb_of_the_stated_size():
    scene = make_scene(0)
    assert scene.image.shape == (SIZE, SIZE, 3) and scene.image.dtype == np.uint8
    assert all(thing.mask.shape == (SIZE, SIZE) and thing.mask.dtype == bool for thing in scene.objects)


def exact_signs(rapidocr_engine, **weather):
    """The share of the signs of 20 held-out scenes that OCR reads without an error."""
    scenes = [make_scene(HELD_OUT + seed, "test", **weather) for seed in range(20)]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2) / 255
    score = make_scorer("ocr_map", engine=rapidocr_engine)(images, [scene.caption for scene in scenes])
    num_signs = torch.tensor([float(len(scene.signs)) for scene in scenes])
    return ((score.details["exact"] * num_signs).sum() / num_signs.sum()).item()


def test_a_real_engine_reads_every_sign_of_a_scene_and_not_the_weathered_ones(rapidocr_engine):
    """The world is only worth training on if its own renders earn the reward."""
    assert exact_signs(rapidocr_engine) >= 0.95
    assert exact_signs(rapidocr_engine, worn_share=1.0) < 0.1
    assert exact_signs(rapidocr_engine, wrong_share=1.0) < 0.1


def test_the_committed_prompts_are_the_worlds_own():
    for split in ("train", "test"):
        with open(f"dataset/signs/{split}.txt", encoding="utf-8") as file:
            lines = file.read().splitlines()
        assert lines[:40] == [make_scene(seed, split).caption for seed in range(40)]
        assert {word for line in lines for word in line.split('"')[1::2]} <= set(words(split))


def test_scene_survives_a_round_trip_through_png(tmp_path):
    scene = make_scene(1)
    Image.fromarray(scene.image).save(tmp_path / "scene.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "scene.png")), scene.image)


@pytest.mark.parametrize("weather", ["worn_share", "wrong_share"])
def test_weather_changes_the_letters_of_a_sign_and_nothing_else(weather):
    for seed in SEEDS:
        whole, weathered = make_scene(seed), make_scene(seed, **{weather: 1.0})
        assert whole.caption == weathered.caption
        changed = (whole.image != weathered.image).any(axis=2)
        for sign in whole.signs:
            left, top, right, bottom = sign.text_box
            assert changed[top:bottom, left:right].mean() > (0.1 if weather == "worn_share" else 0.01)
            changed[sign.mask] = False
        assert not changed.any()


def test_a_share_of_the_signs_is_weathered_each_by_itself():
    counts = Counter()
    for seed in range(100):
        whole, weathered = make_scene(seed), make_scene(seed, worn_share=0.3, wrong_share=0.5)
        changed = (whole.image != weathered.image).any(axis=2)
        counts.update(changed[sign.mask].any() for sign in whole.signs)
    assert counts[True] / counts.total() == pytest.approx(0.65, abs=0.1)  # three standard deviations


# Pairs


def test_a_seed_gives_the_same_pair_every_time_and_another_seed_another():
    for seed in SEEDS:
        one, two = make_pair(seed), make_pair(seed)
        assert one.caption == two.caption and np.array_equal(one.image, two.image)
    assert len({make_pair(seed).image.tobytes() for seed in SEEDS}) == len(SEEDS)


def test_a_pair_is_two_shapes_of_different_kinds_and_colours_named_from_left_to_right():
    for seed in SEEDS:
        pair = make_pair(seed)
        (color, kind), (other_color, other_kind) = (thing.name.split() for thing in pair.objects)
        assert {color, other_color} <= set(COLORS) and {kind, other_kind} <= set(PAIR_SHAPES)
        assert color != other_color and kind != other_kind
        assert pair.caption == f"a {color} {kind} and a {other_color} {other_kind}"
        left, right = (thing.mask.nonzero()[1].mean() for thing in pair.objects)
        # a star's pixels, once counted, may lie a fraction of a pixel off its centre
        assert left < right + 1
        assert pair.signs == ()


def test_the_shapes_of_a_pair_have_their_colours_touch_nothing_and_lie_all_over_the_image():
    covered = np.zeros((SIZE, SIZE), dtype=int)
    for seed in range(200):
        pair = make_pair(seed)
        one, two = (thing.mask for thing in pair.objects)
        assert not (one & two).any()
        border = one | two
        border[1:-1, 1:-1] = False
        assert not border.any()
        for thing in pair.objects:
            # an edge's pixels are mixed, and a cross or a ring has many of them
            assert (pair.image[thing.mask] == COLORS[thing.name.split()[0]]).all(axis=1).mean() > 0.7
        covered += one | two
    quarters = covered.reshape(2, SIZE // 2, 2, SIZE // 2).sum(axis=(1, 3)) / covered.sum()
    assert quarters.min() > 0.2, "neither the middle nor a side is a good guess"
