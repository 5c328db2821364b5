"""The signs world: the same scene from the same seed, and everything that the caption says where the masks say it is."""

import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from scripts.pretrain.signs_world import (
    BACKGROUNDS,
    COLORS,
    CONSONANTS,
    NUM_WORDS,
    PAIR_SHAPES,
    SHAPES,
    SIZE,
    VOWELS,
    WORD_LENGTHS,
    make_pair,
    make_scene,
    words,
)

SEEDS = range(24)


def test_a_seed_gives_the_same_scene_every_time():
    for seed in SEEDS:
        one, two = make_scene(seed), make_scene(seed)
        assert (one.caption, one.word, one.text_box) == (two.caption, two.word, two.text_box)
        assert np.array_equal(one.image, two.image)


def test_seeds_give_different_scenes():
    assert len({make_scene(seed).image.tobytes() for seed in SEEDS}) == len(SEEDS)


def test_words_of_the_splits_share_none_and_are_of_every_length_alike():
    train, test = words("train"), words("test")
    assert len(set(train)) == len(train) and len(set(test)) == len(test) and not set(train) & set(test)
    for split, drawn in (("train", train), ("test", test)):
        assert Counter(map(len, drawn)) == {n: NUM_WORDS[split] // len(WORD_LENGTHS) for n in WORD_LENGTHS}


def test_words_alternate_consonants_and_vowels():
    for word in (*words("train"), *words("test")):
        assert set(word[::2]) <= set(CONSONANTS) and set(word[1::2]) <= set(VOWELS), word


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_scene_takes_its_word_from_its_split(split):
    assert all(make_scene(seed, split).word in words(split) for seed in SEEDS)


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'valid'.*test.*train"):
        words("valid")


def test_caption_names_the_shapes_from_left_to_right_then_the_sign_and_its_word():
    for seed in SEEDS:
        scene = make_scene(seed)
        *shapes, sign = (thing.name for thing in scene.objects)
        assert 1 <= len(shapes) <= 2
        assert all(re.fullmatch(f"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})", shape) for shape in shapes)
        assert scene.caption == ", ".join(f"a {s}" for s in shapes) + f' and a {sign} that says "{scene.word}"'
        centres = [thing.mask.nonzero()[1].mean() for thing in scene.objects[:-1]]
        assert centres == sorted(centres)


def test_objects_have_different_colours():
    for seed in SEEDS:
        colors = [thing.name.split()[0] for thing in make_scene(seed).objects]
        assert len(set(colors)) == len(colors)


def test_masks_do_not_overlap():
    for seed in SEEDS:
        assert sum(thing.mask.astype(int) for thing in make_scene(seed).objects).max() == 1


def test_most_pixels_of_a_mask_have_the_named_colour():
    for seed in SEEDS:
        scene = make_scene(seed)
        for thing in scene.objects:
            color = COLORS[thing.name.split()[0]]
            # the letters cover up to half of a sign, and a pixel on an edge is mixed
            assert (scene.image[thing.mask] == color).all(axis=1).mean() > 0.45, (seed, thing.name)


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
        left, top, right, bottom = scene.text_box
        sign = scene.objects[-1].mask
        assert sign[top:bottom, left:right].all(), "the word stands on its sign"
        ink = sign & (scene.image.min(axis=2) > 200)  # no sign is as light as its letters
        rows, columns = ink.nonzero()
        # a pixel under half of ink is left out of the box, and so is one that looks lighter than it is
        assert np.abs(np.array([columns.min() - left, rows.min() - top])).max() <= 1
        assert np.abs(np.array([columns.max() + 1 - right, rows.max() + 1 - bottom])).max() <= 1


def test_a_given_word_replaces_the_drawn_one_and_nothing_else():
    drawn, given = make_scene(3), make_scene(3, word="HUT")
    assert given.word == "HUT" and given.caption == drawn.caption.replace(drawn.word, "HUT")
    for one, other in zip(drawn.objects, given.objects, strict=True):
        assert one.name == other.name and np.array_equal(one.mask, other.mask)
    sign = given.objects[-1].mask
    assert np.array_equal(drawn.image[~sign], given.image[~sign])


def test_image_is_uint8_rgb_of_the_stated_size():
    scene = make_scene(0)
    assert scene.image.shape == (SIZE, SIZE, 3) and scene.image.dtype == np.uint8
    assert all(thing.mask.shape == (SIZE, SIZE) and thing.mask.dtype == bool for thing in scene.objects)


def test_a_real_engine_reads_the_words(rapidocr_engine):
    """The world is only worth training on if its own renders earn the reward."""
    scenes = [make_scene(seed) for seed in SEEDS]
    read = ["".join(line.text for line in rapidocr_engine(scene.image)).upper() for scene in scenes]
    exact = sum(text == scene.word for text, scene in zip(read, scenes, strict=True))
    # most, not all: at this size the engine itself takes an O for a 0 now and then
    assert exact >= 0.7 * len(scenes), list(zip(read, (s.word for s in scenes)))


def test_the_committed_prompts_are_the_worlds_own():
    for split in ("train", "test"):
        with open(f"dataset/signs/{split}.txt", encoding="utf-8") as file:
            lines = file.read().splitlines()
        assert lines[:40] == [make_scene(seed, split).caption for seed in range(40)]
        assert {line.split('"')[1] for line in lines} <= set(words(split))


def test_scene_survives_a_round_trip_through_png(tmp_path):
    scene = make_scene(1)
    Image.fromarray(scene.image).save(tmp_path / "scene.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "scene.png")), scene.image)


def test_a_worn_sign_loses_ink_and_nothing_else_changes():
    for seed in SEEDS:
        whole, worn = make_scene(seed), make_scene(seed, worn=True)
        assert (whole.caption, whole.text_box) == (worn.caption, worn.text_box)
        left, top, right, bottom = whole.text_box
        changed = (whole.image != worn.image).any(axis=2)
        assert changed[top:bottom, left:right].mean() > 0.1
        changed[top - 1 : bottom + 1, left - 1 : right + 1] = False
        assert not changed.any()


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
        assert (pair.word, pair.text_box) == ("", (0, 0, 0, 0))


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
