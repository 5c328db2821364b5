"""Scores of an epoch: maps pooled to tokens, batches joined, nothing carrying a gradient."""

from concurrent.futures import Future

import numpy as np
import pytest
import torch

from flow_grpo.reward_map import pool_to_tokens
from flow_grpo.rewards import WeightedScorers, make_scorers
from flow_grpo.score import Score, to_uint8
from flow_grpo.scorers import make_scorer
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.scoring import PendingScores, concatenate, gather

REWARD = "brightness_reward:Brightness"


def some_images(batch=4, seed=0):
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def score(images, scorers=None, **options):
    pending = PendingScores(scorers or make_scorers("cpu", {REWARD: 2.0}, {REWARD: options}), (4, 4))
    pending.submit(images, ["prompt"] * len(images), [{}] * len(images), torch.arange(len(images)))
    scored = pending.collect()
    assert pending.failure is None
    return scored


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


def test_a_reward_of_weight_0_is_watched_and_its_map_left_out():
    scored = score(some_images(), make_scorers("cpu", {REWARD: 0.0, "jpeg_compressibility": 1.0}))
    assert scored.maps == {} and REWARD in scored.details


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


def test_the_first_samples_are_kept_over_batches_in_order():
    images, prompts = some_images(4), ["a", "b", "c", "d"]
    pending = PendingScores(make_scorers("cpu", {REWARD: 1.0}), None, num_shown=3)
    for i in (0, 2):
        pending.submit(images[i : i + 2], prompts[i : i + 2], [{}] * 2, torch.arange(2))
    assert pending.samples == []
    pending.collect()
    assert [kept.prompt for kept in pending.samples] == ["a", "b", "c"]
    assert np.array_equal(np.stack([kept.image for kept in pending.samples]), to_uint8(images[:3]))


def test_the_first_failure_of_a_scorer_is_held_until_the_run_asks():
    def broken(images, prompts, metadata=None):
        raise RuntimeError(f"cannot score {prompts[0]}")

    scores = PendingScores(WeightedScorers({"broken": broken}, {"broken": 1.0}))
    for prompt in ("first", "second"):
        scores.submit(some_images(1), [prompt], [{}], torch.tensor([0]))
    assert scores.collect() is None and str(scores.failure) == "cannot score first"
    assert scores.error(Distributed()) is scores.failure


def test_a_failure_may_come_as_late_as_the_answer():
    answer = Future()

    class Late:
        def submit(self, images, prompts, metadata=None):
            return answer

    scores = PendingScores(WeightedScorers({"late": Late()}, {"late": 1.0}))
    scores.submit(some_images(1), ["p"], [{}], torch.tensor([0]))
    assert scores.failure is None
    answer.set_exception(ZeroDivisionError())
    assert scores.collect() is None and isinstance(scores.failure, ZeroDivisionError)


@pytest.mark.parametrize("answer", [Score(torch.zeros(3)), torch.zeros(4)], ids=["too few", "no Score"])
def test_an_answer_that_does_not_fit_its_batch_is_a_failure_of_its_scorer(answer):
    scores = PendingScores(WeightedScorers({"odd": lambda *batch: answer}, {"odd": 1.0}))
    scores.submit(some_images(4), ["p"] * 4, [{}] * 4, torch.arange(4))
    assert scores.collect() is None and "scorer 'odd' gave" in str(scores.failure)


def test_a_map_of_an_image_that_another_scorer_could_not_score_is_not_valid():
    def half(images, prompts, metadata=None):
        return Score(torch.zeros(2), valid=torch.tensor([True, False]))

    scored = score(
        some_images(2), WeightedScorers({"half": half, REWARD: make_scorer(REWARD)}, {"half": 1.0, REWARD: 1.0})
    )
    assert scored.valid.tolist() == scored.maps[REWARD].valid.tolist() == [True, False]


def test_the_neutral_of_a_map_travels_with_it():
    def dim(images, prompts, metadata=None):
        return Score(torch.zeros(2), images.mean(dim=1), "reward", neutral=0.25)

    parts = [score(some_images(2), WeightedScorers({"dim": dim}, {"dim": 1.0}))] * 2
    assert concatenate(parts).maps["dim"].neutral == 0.25


def test_batches_that_measured_other_things_are_joined_without_inventing_numbers():
    def as_scored(details, reward_map):
        scorer = WeightedScorers(
            {
                "own": lambda images, *_: Score(
                    torch.zeros(2), reward_map and images.mean(1), reward_map, details=details
                )
            },
            {"own": 1.0},
        )
        return score(some_images(2), scorer)

    joined = concatenate([as_scored({"seen": torch.ones(2)}, "reward"), as_scored({}, None)])
    assert joined.details["own/seen"][:2].tolist() == [1, 1] and joined.details["own/seen"][2:].isnan().all()
    assert joined.maps["own"].valid.tolist() == [True, True, False, False]
    with pytest.raises(RuntimeError, match="'own' change their kind or neutral"):
        concatenate([as_scored({}, "reward"), as_scored({}, "importance")])
