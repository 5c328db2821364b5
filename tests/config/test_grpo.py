"""The named runs: each resolves, the baselines differ only where they say, and no field is spelled twice."""

import pytest

from config.base import get_config as base_config
from config.geometry import PUBLISHED
from config.grpo import RUNS as REGISTERED
from config.grpo import get_config, run
from config.validation import resolve
from flow_grpo.training.policies.families import FAMILIES

TINY_RUNS = ("tiny_ocr_map", "tiny_ocr", "tiny_clip_gradcam")
UNTUNED_RUNS = ("ocr_map_zimage", "ocr_map_flux2_klein", "ocr_map_qwenimage", "ocr_map_qwenimage21", "ocr_map_flux2")
RUNS = (
    *TINY_RUNS,
    "ocr_map_sd3",
    "ocr_sd3",
    "ocr_map_pickscore_sd3",
    "ocr_map_sd3_fast",
    "ocr_map_flux",
    *UNTUNED_RUNS,
)


def flatten(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(one, other):
    one, other = dict(flatten(one.to_dict())), dict(flatten(other.to_dict()))
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def test_the_runs_are_those_that_are_registered():
    assert tuple(REGISTERED) == RUNS


def test_a_run_is_added_by_one_function(monkeypatch):
    monkeypatch.setattr("config.grpo.RUNS", dict(REGISTERED))

    @run
    def own_run():
        config = get_config("tiny_ocr")
        config.seed = 7
        return config

    config = get_config("own_run")
    assert (config.name, config.seed) == ("own_run", 7)


@pytest.mark.parametrize("name", RUNS)
def test_a_named_run_resolves_and_knows_its_name(name):
    config = get_config(name)
    resolved, geometry = resolve(config, num_processes=config.num_gpus)
    assert resolved.name == name and resolved.run_dir == f"runs/{name}"
    assert geometry.batches_per_update >= 1


@pytest.mark.parametrize("name", RUNS)
def test_a_run_sets_no_field_that_the_base_does_not_have(name):
    known = set(dict(flatten(base_config().to_dict())))
    added = set(dict(flatten(get_config(name).to_dict()))) - known
    assert {field.split(".")[0] for field in added} <= {"rewards", "reward_options", "eval_rewards"}


@pytest.mark.parametrize(
    ("num_gpus", "sizes"),
    [
        *PUBLISHED.items(),  # Flow-GRPO's own
        *((2, (48, 24, 9)), (6, (48, 24, 8)), (8, (48, 24, 9)), (16, (48, 24, 9))),  # the epoch of 32, in more batches
        *((5, (50, 24, 8)), (7, (49, 24, 7))),  # the next number of groups that divides
    ],
)
@pytest.mark.parametrize("name", ["ocr_map_sd3", "ocr_sd3"])
def test_the_large_runs_scale_by_one_field(name, num_gpus, sizes):
    config = get_config(name)
    config.num_gpus = num_gpus
    resolved, geometry = resolve(config, num_processes=num_gpus)
    assert (resolved.num_groups, resolved.group_size, resolved.batch_size) == sizes
    assert geometry.batches_per_process * geometry.batch_size * num_gpus == geometry.num_samples


@pytest.mark.parametrize("num_gpus", [1, 2, 4, 8])
@pytest.mark.parametrize("name", UNTUNED_RUNS)
def test_a_run_of_another_family_has_the_same_epoch_on_1_to_8_gpus(name, num_gpus):
    config = get_config(name)
    config.num_gpus = num_gpus
    resolved, geometry = resolve(config, num_processes=num_gpus)
    assert geometry.num_samples == 48 * 24 and geometry.updates_per_epoch == 2
    assert resolved.policy in FAMILIES


def test_flow_grpos_published_run_is_the_base_of_the_large_ones():
    """Flow-GRPO, config/grpo.py general_ocr_sd3: 32 GPUs, groups of 24, 48 groups, 10 of 40 steps, beta 0.04."""
    resolved, geometry = resolve(get_config("ocr_sd3"), num_processes=32)
    assert (geometry.group_size, geometry.num_groups, geometry.batch_size) == (24, 48, 9)
    assert (resolved.sample.num_steps, resolved.sample.eval_num_steps, resolved.sample.guidance_scale) == (10, 40, 4.5)
    assert (resolved.train.beta, resolved.train.clip_range, resolved.train.learning_rate) == (0.04, 1e-4, 3e-4)
    assert (resolved.lora_rank, resolved.lora_alpha, resolved.resolution) == (32, 64, 512)


@pytest.mark.parametrize("ours, baseline", [("tiny_ocr_map", "tiny_ocr"), ("ocr_map_sd3", "ocr_sd3")])
def test_a_baseline_differs_from_our_run_in_reward_mode_and_ratio_alone(ours, baseline):
    different = differences(get_config(ours), get_config(baseline))
    by_scorer = {name for name in different if name.startswith(("rewards.", "reward_options."))}
    assert different - by_scorer <= {"name", "advantage.mode", "train.ratio"}
    resolved = get_config(baseline)
    assert resolved.advantage.mode == "scalar" and resolved.train.ratio == "image"


def test_an_unknown_run_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=f"'tiny'.*{', '.join(RUNS)}"):
        get_config("tiny")


def test_two_calls_share_nothing():
    one, other = get_config("tiny_ocr_map"), get_config("tiny_ocr_map")
    one.train.beta = 0.123
    assert other.train.beta != 0.123
