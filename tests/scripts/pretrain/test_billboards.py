"""The billboards of tiny-clip: the words of their splits, and a caption that the masks bear out."""

import re
from collections import Counter

import numpy as np
import pytest

from scripts.pretrain.billboards import NUM_WORDS, WORD_LENGTHS, billboard_words, make_billboard
from scripts.pretrain.signs_world import COLORS, SHAPES

SEEDS = range(24)


def test_words_of_the_splits_share_none_and_are_of_every_length_alike():
    train, test = billboard_words("train"), billboard_words("test")
    assert len(set(train)) == len(train) and len(set(test)) == len(test) and not set(train) & set(test)
    for split, drawn in (("train", train), ("test", test)):
        assert Counter(map(len, drawn)) == {n: NUM_WORDS[split] // len(WORD_LENGTHS) for n in WORD_LENGTHS}


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'valid'.*test.*train"):
        billboard_words("valid")


def test_caption_names_the_shapes_from_left_to_right_then_the_sign_and_its_word():
    for seed in SEEDS:
        scene = make_billboard(seed, "test")
        (sign,) = scene.signs
        shapes = [thing.name for thing in scene.objects[:-1]]
        assert 1 <= len(shapes) <= 2 and sign.word in billboard_words("test")
        assert all(re.fullmatch(f"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})", shape) for shape in shapes)
        assert scene.caption == ", ".join(f"a {s}" for s in shapes) + f' and a {sign.name} that says "{sign.word}"'
        centres = [thing.mask.nonzero()[1].mean() for thing in scene.objects[:-1]]
        assert centres == sorted(centres)
        assert sum(thing.mask.astype(int) for thing in scene.objects).max() == 1


def test_a_given_word_replaces_the_drawn_one_and_nothing_else():
    drawn, given = make_billboard(3), make_billboard(3, word="HUT")
    (sign,) = given.signs
    assert sign.word == "HUT" and given.caption == drawn.caption.replace(drawn.signs[0].word, "HUT")
    assert np.array_equal(drawn.image[~sign.mask], given.image[~sign.mask])
