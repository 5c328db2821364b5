import random

import pytest

from flow_grpo.training.alarm import alarms

NUM_PROMPTS = 64


def evaluation(epoch, seed, **means):
    """Values around each mean, with noise of 0.1 per prompt that another seed draws anew."""
    rng = random.Random(seed)
    return epoch, {name: [mean + rng.gauss(0, 0.1) for _ in range(NUM_PROMPTS)] for name, mean in means.items()}


def test_a_gold_reward_that_falls_while_the_trained_one_rises_rings():
    history = [evaluation(0, 1, reward=0.4, gold=0.6), evaluation(5, 2, reward=0.6, gold=0.65)]
    history += [evaluation(10, 3, reward=0.9, gold=0.4)]
    (alarm,) = alarms(history, ["gold"])
    assert (alarm.measure, alarm.since) == ("gold", 5)  # it was best there
    assert alarm.latest == pytest.approx(0.4, abs=0.05) and alarm.reward_now > alarm.reward_before
    assert "since epoch 5 the trained reward rose" in str(alarm) and "gold fell" in str(alarm)


@pytest.mark.parametrize(
    ("reward", "gold"), [(0.9, 0.6), (0.9, 0.9), (0.4, 0.3), (0.2, 0.3)], ids=["flat", "up", "no rise", "both fall"]
)
def test_nothing_rings_where_only_one_of_the_two_happens(reward, gold):
    assert alarms([evaluation(0, 1, reward=0.4, gold=0.6), evaluation(5, 2, reward=reward, gold=gold)], ["gold"]) == []


def test_noise_alone_rings_in_less_than_one_of_a_hundred_runs():
    rang = 0
    for run in range(300):
        history = [evaluation(epoch, 100 * run + epoch, reward=0.4 + 0.05 * epoch, gold=0.6) for epoch in range(6)]
        rang += bool(alarms(history, ["gold"]))
    assert rang <= 3


def test_a_fall_that_is_sure_but_tiny_does_not_ring():
    before = (0, {"reward": [0.1, 0.2, 0.3], "gold": [0.500, 0.600, 0.700]})
    after = (1, {"reward": [0.5, 0.6, 0.7], "gold": [0.499, 0.599, 0.699]})
    assert alarms([before, after], ["gold"]) == []


def test_prompts_that_were_not_scored_in_both_evaluations_are_left_out():
    before = (0, {"reward": [0.1, 0.1, 0.1, None], "gold": [0.8, 0.8, 0.8, None]})
    after = (1, {"reward": [0.5, 0.6, 0.5, 0.5], "gold": [0.3, 0.2, 0.3, 0.1]})
    (alarm,) = alarms([before, after], ["gold"])
    assert alarm.best == pytest.approx(0.8)


def test_evaluations_of_another_number_of_prompts_are_not_compared():
    """As a resumed run has them, which may change its prompts by allow_changes."""
    few = (0, {"reward": [0.1, 0.1], "gold": [0.9, 0.9]})
    assert alarms([few, evaluation(5, 1, reward=0.9, gold=0.2)], ["gold"]) == []
    history = [few, evaluation(5, 1, reward=0.4, gold=0.6), evaluation(10, 2, reward=0.9, gold=0.2)]
    assert [alarm.since for alarm in alarms(history, ["gold"])] == [5]


def test_one_evaluation_or_an_unknown_measure_rings_nothing():
    first, second = evaluation(0, 1, reward=0.4, gold=0.6), evaluation(1, 2, reward=0.9, gold=0.1)
    assert alarms([first], ["gold"]) == [] and alarms([first, second], ["silver"]) == []
