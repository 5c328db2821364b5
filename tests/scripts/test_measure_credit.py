"""The measurement end to end on a few images, and what it refuses."""

import json

import pytest

from config.grpo import get_config
from scripts.measure_credit import markdown_table, measure, measured_config


def small(name="tiny_clip_gradcam", **rewards):
    config = get_config(name)
    config.group_size, config.batch_size = 2, 3
    config.sample.num_steps, config.train.num_steps = 2, 1
    if rewards:
        config.rewards, config.reward_options = rewards, {}
    return config


def test_a_measurement_has_every_arm_and_step_and_can_be_written_down():
    result = measure(small(), 16, None, seed=0)
    assert result["arms"].keys() == result["by_step"][0]["arms"].keys() and len(result["by_step"]) == 1
    # 32 images are too few for a cosine that means anything
    assert all(-1 <= row["cos_8"] <= 1 and row["rms"] > 0 for row in result["arms"].values())
    assert not any(label.startswith("residual") for label in result["arms"])  # of importance maps there are none
    assert result["arms"]["own, alpha 0.5"]["cos_1"] != result["arms"]["scalar"]["cos_1"]
    json.dumps(result)
    table = markdown_table(result["arms"]).splitlines()
    assert len(table) == 2 + len(result["arms"]) and table[2].startswith("| scalar | ")


def test_a_run_without_maps_is_refused():
    with pytest.raises(ValueError, match="none of jpeg_compressibility has a map"):
        measure(small(jpeg_compressibility=1.0), 16, None, seed=0)


def test_too_few_groups_are_refused():
    with pytest.raises(ValueError, match="9 groups are too few"):
        measured_config(small(), 9, 0)


def test_a_batch_never_holds_two_groups():
    config = measured_config(small(), 16, 0)
    assert (config.group_size, config.batch_size) == (2, 2)
    config = small()
    config.group_size, config.batch_size = 24, 9
    assert measured_config(config, 16, 0).batch_size == 8
