"""The judge of the signs world against the renderer, which knows what it drew."""

import numpy as np
import pytest

from scripts.pretrain.signs_judge import judge
from scripts.pretrain.signs_world import BACKGROUNDS, HELD_OUT, SIZE, make_scene

SEEDS = range(HELD_OUT, HELD_OUT + 60)


@pytest.mark.parametrize("anywhere", [False, True])
def test_every_scene_as_rendered_is_right(anywhere):
    for seed in SEEDS:
        scene = make_scene(seed, "test", anywhere=anywhere)
        verdict = judge(scene.image, scene.caption)
        assert verdict.shape_right, scene.caption
        assert [sign.word for sign in verdict.signs if sign.right] == [sign.word for sign in scene.signs]


def test_the_signs_are_found_where_they_stand():
    for seed in SEEDS:
        scene = make_scene(seed, "test")
        for found, drawn in zip(judge(scene.image, scene.caption).signs, scene.signs, strict=True):
            assert found.mask[drawn.mask].all() and found.mask.sum() <= 1.2 * drawn.mask.sum()


def test_a_wrong_letter_is_seen_at_its_place_and_nowhere_else():
    for seed in SEEDS:
        scene, wrong = make_scene(seed), make_scene(seed, wrong_share=1.0)
        assert all(sign.letters_right.count(False) == 1 for sign in judge(wrong.image, scene.caption).signs)


def test_worn_signs_are_not_right():
    verdicts = [judge(make_scene(seed, worn_share=1.0).image, make_scene(seed).caption) for seed in SEEDS]
    assert not any(sign.right for verdict in verdicts for sign in verdict.signs)
    assert all(verdict.shape_right for verdict in verdicts)


def test_words_on_each_others_signs_are_wrong():
    """OCR would read both words and be content."""
    seed = next(seed for seed in SEEDS if len(make_scene(seed).signs) == 2)
    asked = make_scene(seed, words_shown=["HUT", "DOG"])
    swapped = make_scene(seed, words_shown=["DOG", "HUT"])
    assert not any(sign.right for sign in judge(swapped.image, asked.caption).signs)


def test_an_empty_image_has_neither_signs_nor_shape():
    empty = np.full((SIZE, SIZE, 3), BACKGROUNDS[0], dtype=np.uint8)
    verdict = judge(empty, make_scene(0).caption)
    assert not verdict.sign_mask.any() and not verdict.shape_right
    assert not any(any(sign.letters_right) for sign in verdict.signs)


def test_noise_as_an_autoencoder_leaves_it_changes_no_verdict():
    rng = np.random.default_rng(0)
    for seed in SEEDS[:20]:
        scene = make_scene(seed)
        noisy = (scene.image + rng.normal(0, 12, scene.image.shape)).clip(0, 255).astype(np.uint8)
        verdict = judge(noisy, scene.caption)
        assert verdict.shape_right and all(sign.right for sign in verdict.signs)


def test_what_is_not_of_this_world_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        judge(np.zeros((SIZE, SIZE, 3)), 'a red ring and a blue sign "HUT"')
    for caption in (
        "a cat",
        "a red ring",
        'a red cat and a blue sign "HUT"',
        'a red ring and a blue sign that says "HUT"',
    ):
        with pytest.raises(ValueError, match="not a caption"):
            judge(make_scene(0).image, caption)
