import pytest
import torch
from diffusers import SD3Transformer2DModel

from config.validation import resolve
from scripts.benchmark.scoring_runs import SCORINGS, get_config
from scripts.benchmark.train import SHARED, TRANSFORMERS, make_policy, measure, rollout_step, update_step

SETTINGS = {
    **{"model": "tiny", "device": "cpu", "dtype": "float32", "batch": 2, "repeats": 1},
    **{"checkpointing": False, "compile": False},
}


@pytest.fixture(scope="module")
def policy():
    return make_policy("tiny", "cpu", torch.float32)


def test_the_large_transformer_is_sd35_medium():
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**SHARED, **TRANSFORMERS["sd3.5-medium"])
    billions = sum(parameter.numel() for parameter in transformer.parameters()) / 1e9
    assert 2.2 < billions < 2.6  # 2.5 by its model card


def test_a_step_is_of_512_pixels_with_guidance(policy):
    assert policy.token_grid == (32, 32) and policy.guidance_scale == 4.5
    assert rollout_step(policy, 2)().shape == (2, 1024)


def test_an_update_reaches_the_adapter_and_clears_its_gradients(policy):
    gradients = []
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.abs().sum()))
        for p in policy.network.parameters()
        if p.requires_grad
    ]
    update_step(policy, 2)()
    for hook in hooks:
        hook.remove()
    assert sum(gradients) > 0 and all(p.grad is None for p in policy.network.parameters())


def test_an_update_costs_two_to_three_of_a_rollouts_steps():
    """Frozen weights have no gradient of their own: a backward pass is one more forward's worth, not two.

    A rollout adds the LoRA to the weights first; an update multiplies by it apart, in both passes.
    """
    rollout, update = measure("rollout", SETTINGS), measure("update", SETTINGS)
    assert 1.7 < update["flops"] / rollout["flops"] < 3
    assert rollout["seconds"] > 0 and update["seconds"] > 0


def test_what_checkpointing_computes_again_is_no_use_of_the_card():
    plain, checkpointed = (measure("update", SETTINGS | {"checkpointing": flag}) for flag in (False, True))
    assert checkpointed["flops"] == plain["flops"]


def test_the_scorings_are_runs_that_differ_in_their_scorer_alone():
    configs = {}
    for name in SCORINGS:
        config, geometry = resolve(get_config(name), num_processes=1)
        assert geometry.num_groups * geometry.group_size == 128
        assert config.advantage.mode == "scalar" and config.train.spatial_kl == 0  # what a reward without a map can do
        configs[name] = config.to_dict()
    options = {name: config.pop("reward_options") for name, config in configs.items()}
    assert options == {"free": {}, "worker": {"ocr_map": {"num_workers": 1}}, "serial": {}}
    names = [(config.pop("name"), config.pop("run_dir"), *config.pop("rewards")) for config in configs.values()]
    assert [rewards for _, _, *rewards in names] == [["jpeg_compressibility"], ["ocr_map"], ["ocr_map"]]
    assert configs["free"] == configs["worker"] == configs["serial"]
