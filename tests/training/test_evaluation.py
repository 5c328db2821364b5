"""Evaluation on held-out prompts: each counted once, by fixed noise, whatever the batches."""

import pytest
import torch

from flow_grpo.rewards import WeightedScorers, make_scorers
from flow_grpo.score import Score
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.evaluation import evaluate
from flow_grpo.training.rollout import SDE, rollout

REWARD = "brightness_reward:Brightness"
HELD_OUT = [f'a red circle and a blue sign "{word}"' for word in ("HUT", "SOB", "TAN", "LAP", "NOR")]
METADATA = [{"number": number} for number in range(len(HELD_OUT))]


@pytest.fixture(scope="module")
def scorers():
    return make_scorers("cpu", {REWARD: 1.0})


def darkness(images, prompts, metadata=None):
    return Score(1 - images.mean(dim=(1, 2, 3)))


def run(policy, scorers, batch_size=2, **options):
    return evaluate(
        policy,
        HELD_OUT,
        METADATA,
        scorers,
        SDE(3, noise_level=0.0),
        batch_size,
        seed=1,
        distributed=Distributed(),
        **options,
    )


def test_each_prompt_is_scored_once_though_the_last_batch_is_short(policy, scorers):
    asked, told = [], []

    def listening(images, prompts, metadata=None):
        asked.extend(prompts)
        told.extend(metadata)
        assert len(images) == len(prompts)
        return Score(images.mean(dim=(1, 2, 3)))

    evaluation = run(policy, WeightedScorers({"listening": listening}, {"listening": 1.0}))
    assert asked == HELD_OUT and told == METADATA
    assert len(evaluation.samples) == 5


def test_metrics_are_means_over_the_prompts(policy, scorers):
    evaluation = run(policy, scorers)
    rewards = [sample.reward for sample in evaluation.samples]
    assert evaluation.metrics["eval/reward"] == pytest.approx(sum(rewards) / 5)
    names = ("reward", "invalid_share", f"{REWARD}/contrast", "signal/edge_density", "signal/colour_entropy")
    assert set(evaluation.metrics) == {f"eval/{name}" for name in names}
    assert evaluation.metrics["eval/invalid_share"] == 0
    brightness = [sample.image.mean() / 255 for sample in evaluation.samples]
    assert rewards == pytest.approx(brightness, abs=0.5 / 255)  # the samples' pixels are rounded to a level


def test_an_image_that_could_not_be_scored_is_counted_and_no_part_of_the_mean(policy):
    def scorer(images, prompts, metadata=None):
        bad = torch.tensor([HELD_OUT[1] == prompt for prompt in prompts])
        return Score(torch.where(bad, 0.0, images.mean(dim=(1, 2, 3))), valid=~bad)

    evaluation = run(policy, WeightedScorers({"own": scorer}, {"own": 1.0}))
    rewards = [sample.reward for sample in evaluation.samples]
    assert rewards.pop(1) is None
    assert evaluation.metrics["eval/reward"] == pytest.approx(sum(rewards) / 4)
    assert evaluation.metrics["eval/invalid_share"] == pytest.approx(1 / 5)


def test_each_of_several_rewards_is_reported_by_itself(policy):
    def brightness(images, prompts, metadata=None):
        return Score(images.mean(dim=(1, 2, 3)))

    def darkness(images, prompts, metadata=None):
        return Score(1 - images.mean(dim=(1, 2, 3)))

    metrics = run(policy, WeightedScorers({"a": brightness, "b": darkness}, {"a": 2.0, "b": 1.0})).metrics
    assert metrics["eval/a"] + metrics["eval/b"] == pytest.approx(1)
    assert metrics["eval/reward"] == pytest.approx(2 * metrics["eval/a"] + metrics["eval/b"])


def test_an_evaluation_without_any_scored_image_is_an_error(policy):
    def scorer(images, prompts, metadata=None):
        return Score(torch.zeros(len(images)), valid=torch.zeros(len(images), dtype=torch.bool))

    with pytest.raises(RuntimeError, match="none of the 5 images"):
        run(policy, WeightedScorers({"own": scorer}, {"own": 1.0}))


def test_an_evaluation_repeats_exactly(policy, scorers):
    assert run(policy, scorers).metrics == run(policy, scorers).metrics


def test_the_batch_size_changes_nothing(policy, scorers):
    one, other = run(policy, scorers, batch_size=1), run(policy, scorers, batch_size=5)
    # another batch size takes other matrix kernels, whose fp32 rounding the steps carry on
    assert one.metrics["eval/reward"] == pytest.approx(other.metrics["eval/reward"], abs=1e-4)


def test_evaluation_leaves_the_random_states_and_later_rollouts_alone(policy, scorers, prompts):
    before = rollout(policy, prompts, [1, 2], SDE(3, 0.7), 2)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    run(policy, scorers)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(rollout(policy, prompts, [1, 2], SDE(3, 0.7), 2).images, before.images)


def test_prompts_of_several_sizes_are_each_drawn_at_their_own(policy, scorers):
    sizes = [(64, 64), (48, 32), (64, 64), (48, 32), (64, 64)]
    try:
        mixed = run(policy, scorers, sizes=sizes)
        policy.set_resolution(64)
        square = run(policy, scorers)
        policy.set_resolution((48, 32))
        other = run(policy, scorers)
    finally:
        policy.set_resolution(64)
    # by their first prompts: the batches of 0 and 2, of 1 and 3, and of 4
    assert [sample.prompt for sample in mixed.samples] == [HELD_OUT[i] for i in (0, 2, 1, 3, 4)]
    assert [sample.image.shape[:2] for sample in mixed.samples] == [sizes[i] for i in (0, 2, 1, 3, 4)]
    expected = [(square if size == (64, 64) else other).values["reward"][i] for i, size in enumerate(sizes)]
    # the same prompts in other batches: the rounding of their kernels
    assert mixed.values["reward"] == pytest.approx(expected, abs=1e-5)


def test_no_more_samples_are_kept_than_asked_for(policy, scorers):
    evaluation = run(policy, scorers, batch_size=2, num_samples=3)
    assert [sample.prompt for sample in evaluation.samples] == HELD_OUT[:3]
    assert evaluation.metrics == run(policy, scorers, batch_size=2).metrics


def test_gold_scorers_are_measured_beside_the_trained_ones(policy, scorers):
    gold = WeightedScorers({"darkness": darkness}, {"darkness": 1.0})
    evaluation, plain = run(policy, scorers, gold=gold), run(policy, scorers)
    measured = {name: value for name, value in evaluation.metrics.items() if not name.startswith("eval/gold/")}
    assert measured == plain.metrics  # they change nothing of the others
    assert evaluation.metrics["eval/gold/darkness"] == pytest.approx(1 - evaluation.metrics["eval/reward"], abs=1e-6)
    reward, dark = evaluation.values["reward"], evaluation.values["gold/darkness"]
    assert len(reward) == len(HELD_OUT) and [1 - value for value in dark] == pytest.approx(reward, abs=1e-6)
    assert set(plain.values) == {"reward", "signal/edge_density", "signal/colour_entropy"}
