"""The judge as a scorer: what its shares mean, and what it refuses."""

import numpy as np
import pytest
import torch

from flow_grpo.score import PromptErrors
from flow_grpo.scorers import make_scorer
from scripts.pretrain.signs_world import BACKGROUNDS, HELD_OUT, SIZE, make_scene

SIGNS, SHAPE = (f"scripts.pretrain.judge_scorer:{name}" for name in ("SignsJudge", "ShapeJudge"))


def as_images(*pixels):
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


def test_a_scene_as_rendered_is_wholly_right_and_an_empty_one_not_at_all():
    scene = make_scene(HELD_OUT, "test")
    empty = np.full((SIZE, SIZE, 3), BACKGROUNDS[0], dtype=np.uint8)
    signs, shape = (make_scorer(name)(as_images(scene.image, empty), [scene.caption] * 2) for name in (SIGNS, SHAPE))
    assert signs.reward.tolist() == [1, 0] and signs.details["letters"].tolist() == [1, 0]
    assert shape.reward.tolist() == [1, 0] and signs.reward_map is None and shape.reward_map is None


def test_a_wrong_letter_costs_its_sign_and_not_the_shape():
    seed = next(seed for seed in range(HELD_OUT, HELD_OUT + 50) if len(make_scene(seed).signs) == 2)
    asked, other = make_scene(seed, words_shown=["HUT", "DOG"]), make_scene(seed, words_shown=["HUT", "DOM"])
    signs = make_scorer(SIGNS)(as_images(other.image), [asked.caption])
    assert signs.reward.item() == 1 / 2 and signs.details["letters"].item() == pytest.approx(5 / 6)
    assert make_scorer(SHAPE)(as_images(other.image), [asked.caption]).reward.item() == 1


def test_prompts_of_another_world_are_named_before_a_run():
    scorer = make_scorer(SIGNS)
    scorer.check_prompts([make_scene(seed).caption for seed in range(20)])
    with pytest.raises(PromptErrors, match="2 of 3 prompts.*a cat.*eval_rewards={}") as error:
        scorer.check_prompts(["a cat", make_scene(0).caption, 'a red cat and a blue sign "HUT"'])
    assert set(error.value.faults) == {0, 2}


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="knows images of 64 x 64 pixels, and these are 32 x 32; .*eval_rewards={}"):
        make_scorer(SIGNS)(torch.zeros(1, 3, 32, 32), [make_scene(0).caption])
