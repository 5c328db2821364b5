"""All weights trained in place of a LoRA, in every family: the base for the KL, the state, what diffusers reads."""

import pytest
import torch

from flow_grpo.training.policies.load import find_policy
from flow_grpo.training.rollout import SDE, replay, rollout

SIGMA = torch.tensor(0.6)


@pytest.fixture(scope="module")
def full(family):
    return family.make_policy(adapter="full")


@pytest.fixture(scope="module")
def latents(full):
    return torch.randn(2, *full.latent_shape, generator=torch.Generator().manual_seed(0))


def loss(policy, latents, prompts):
    return policy.velocity(latents, SIGMA, policy.encode_prompts(prompts)).square().sum()


def shift(policy, by=0.005):
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(by)


def test_every_weight_with_a_gradient_is_trained_in_fp32(full, latents, prompts):
    names = [name for name, parameter in full.network.named_parameters() if parameter.requires_grad]
    frozen = full.lora_excluded()
    assert {p.dtype for p in full.trainable_parameters()} == {torch.float32}
    assert not any(name.startswith(tuple(frozen)) for name in names if frozen)
    gradients = torch.autograd.grad(loss(full, latents, prompts), full.trainable_parameters(), allow_unused=True)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) > 0.8 * len(names)


def test_a_fresh_policy_is_its_own_base_and_its_ratio_is_exactly_one(family, full, latents, prompts):
    lora = family.make_policy()
    assert torch.equal(loss(full, latents, prompts), loss(lora, latents, prompts))
    sde = SDE(3, noise_level=0.7)
    trajectories = rollout(full, prompts, [1, 2], sde, num_kept=2)
    assert torch.equal(replay(full, trajectories, 1, sde).log_prob, trajectories.log_probs[:, 1])


def test_the_base_comes_back_for_a_while_and_a_backward_pass_does_not_notice(family, latents, prompts):
    policy = family.make_policy(adapter="full")
    base = loss(policy, latents, prompts).detach()
    policy.keep_base()
    shift(policy)
    expected = torch.autograd.grad(loss(policy, latents, prompts), policy.trainable_parameters(), allow_unused=True)
    under_way = loss(policy, latents, prompts)
    with torch.no_grad(), policy.disable_adapter():
        assert torch.equal(loss(policy, latents, prompts), base)
    gradients = torch.autograd.grad(under_way, policy.trainable_parameters(), allow_unused=True)
    assert under_way != base
    for one, other in zip(gradients, expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_a_resumed_policy_still_knows_the_base(family, full, latents, prompts):
    base, other = loss(full, latents, prompts).detach(), family.make_policy(adapter="full")
    shift(other)
    resumed = family.make_policy(adapter="full")
    resumed.keep_base()
    resumed.load_adapter_state(other.adapter_state())
    assert torch.equal(loss(resumed, latents, prompts), loss(other, latents, prompts))
    with torch.no_grad(), resumed.disable_adapter():
        assert torch.equal(loss(resumed, latents, prompts), base)


def test_a_policy_that_was_not_told_to_keep_the_base_has_no_copy_of_it(full):
    """Four bytes per weight, which a run without a KL does not need, when it begins and when it goes on."""
    full.load_adapter_state({name: tensor.clone() for name, tensor in full.adapter_state().items()})
    with pytest.raises(RuntimeError, match="keep_base"), full.disable_adapter():
        pass


def test_the_saved_pipeline_opens_and_draws_what_the_policy_draws(family, prompts, tmp_path):
    policy = family.make_policy(adapter="full")
    shift(policy)
    drawn = rollout(policy, prompts, [5, 6], SDE(3, noise_level=0.0), num_kept=3)
    policy.adapter.save_pipeline(tmp_path, policy.adapter_state())
    pipeline = find_policy(family.name).pipeline_class.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline) is type(policy.pipeline)
    # fp32, three steps
    expected = family.draw(pipeline, prompts, drawn.latents[:, 0])
    torch.testing.assert_close(drawn.next_latents[:, -1], expected, atol=2e-5, rtol=0)
