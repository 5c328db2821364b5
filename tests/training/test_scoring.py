"""Scores of an epoch: maps pooled to tokens, batches joined, nothing carrying a gradient."""

import torch

from flow_grpo.reward_map import pool_to_tokens
from flow_grpo.rewards import MultiScore, multi_score
from flow_grpo.score import Score
from flow_grpo.scorers import make_scorer
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.scoring import PendingScores, concatenate, gather, submit_samples

REWARD = "brightness_reward:Brightness"


def some_images(batch=4, seed=0):
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def score(images, **options):
    score_fn = multi_score("cpu", {REWARD: 2.0}, {REWARD: options})
    return submit_samples(
        score_fn, images, ["prompt"] * len(images), [{}] * len(images), torch.arange(len(images)), (4, 4)
    )()


def test_rewards_are_weighted_and_maps_are_pooled_to_the_grid():
    images = some_images()
    scored = score(images)
    torch.testing.assert_close(scored.rewards, 2 * images.mean(dim=(1, 2, 3)))
    assert torch.equal(scored.maps[REWARD].values, pool_to_tokens(images.mean(dim=1), (4, 4)))
    assert scored.maps[REWARD].kind == "reward" and scored.maps[REWARD].valid.all()
    # each reward by itself, unweighted, and what its scorer measured
    torch.testing.assert_close(scored.details[REWARD], images.mean(dim=(1, 2, 3)))
    assert set(scored.details) == {REWARD, f"{REWARD}/contrast", "signal/edge_density", "signal/colour_entropy"}


def test_a_reward_without_a_map_leaves_none():
    assert score(some_images(), pixel_map=None).maps == {}


def test_a_differentiable_scorer_leaves_no_graph_behind():
    scored = score(some_images().requires_grad_())
    tensors = [scored.rewards, scored.maps[REWARD].values, *scored.details.values()]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_batches_joined_are_the_scores_of_the_joined_batch():
    images = some_images(6)
    whole, parts = score(images), concatenate([score(images[:2]), score(images[2:])])
    assert torch.equal(parts.rewards, whole.rewards)
    assert torch.equal(parts.maps[REWARD].values, whole.maps[REWARD].values)
    assert torch.equal(parts.maps[REWARD].valid, whole.maps[REWARD].valid)
    assert all(torch.equal(parts.details[name], whole.details[name]) for name in whole.details)


def test_gathering_from_one_process_changes_nothing():
    scored = score(some_images())
    everyone = gather(scored, Distributed())
    assert torch.equal(everyone.rewards, scored.rewards) and torch.equal(everyone.group_ids, scored.group_ids)
    assert torch.equal(everyone.maps[REWARD].values, scored.maps[REWARD].values)


def test_the_first_failure_of_a_scorer_is_held_until_the_run_asks():
    def broken(images, prompts, metadata=None):
        raise RuntimeError(f"cannot score {prompts[0]}")

    scores = PendingScores(MultiScore({"broken": broken}, {"broken": 1.0}), None)
    for prompt in ("first", "second"):
        scores.submit(some_images(1), [prompt], [{}], torch.tensor([0]))
    assert scores.collect() is None and str(scores.failure) == "cannot score first"


def test_a_failure_may_come_as_late_as_the_answer():
    class Late:
        def submit(self, images, prompts, metadata=None):
            return lambda: 1 / 0

    scores = PendingScores(MultiScore({"late": Late()}, {"late": 1.0}), None)
    scores.submit(some_images(1), ["p"], [{}], torch.tensor([0]))
    assert scores.failure is None
    assert scores.collect() is None and isinstance(scores.failure, ZeroDivisionError)


def test_a_map_of_an_image_that_another_scorer_could_not_score_is_not_valid():
    def half(images, prompts, metadata=None):
        return Score(torch.zeros(2), valid=torch.tensor([True, False]))

    mapped = make_scorer(REWARD)
    score_fn = MultiScore({"half": half, REWARD: mapped}, {"half": 1.0, REWARD: 1.0})
    scored = submit_samples(score_fn, some_images(2), ["p"] * 2, [{}] * 2, torch.arange(2), (4, 4))()
    assert scored.valid.tolist() == scored.maps[REWARD].valid.tolist() == [True, False]
