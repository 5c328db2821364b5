"""Every family's blocks, checkpointed and compiled, compute the same."""

import torch
from torch._dynamo.testing import CompileCounter

from flow_grpo.training.rollout import SDE, replay, rollout
from tests.training.policies.asking import blocks, gradients, randomise_adapter, some_latents, velocity


def test_gradient_checkpointing_runs_blocks_twice_and_changes_no_gradient(family, adapted, prompts):
    policy = family.make_policy()
    policy.load_adapter_state(adapted.adapter_state())
    calls = []
    *_, last = blocks(policy)  # some transformers checkpoint only the stack after their refiners
    last.register_forward_pre_hook(lambda *_: calls.append(1))
    expected = gradients(policy, prompts)
    assert len(calls) == 1
    policy.enable_gradient_checkpointing()
    assert all(torch.equal(one, other) for one, other in zip(gradients(policy, prompts), expected, strict=True))
    assert len(calls) == 3  # forward, and once more in the backward pass
    velocity(policy, some_latents(policy), policy.encode_prompts(prompts))
    assert len(calls) == 4  # sampling has no backward pass


def test_compiled_blocks_compute_the_same_in_the_same_graphs_for_sampling_and_update(family, adapted, prompts):
    policy, counter = family.make_policy(), CompileCounter()
    policy.load_adapter_state(adapted.adapter_state())
    policy.compile(backend=counter)
    latents, embeds, num_blocks = some_latents(policy), policy.encode_prompts(prompts), len(list(blocks(policy)))
    sampled = velocity(policy, latents, embeds)
    # the counting backend runs the captured operations as they are
    assert torch.equal(sampled, velocity(adapted, latents, embeds)) and not sampled.requires_grad
    assert counter.frame_count == num_blocks
    gradients(policy, prompts)
    assert counter.frame_count == num_blocks
    assert policy.adapter_state().keys() == adapted.adapter_state().keys()


def test_compiled_blocks_without_their_adapter_are_the_base_models(make_family, prompts):
    """One family stands for all, which share the LoRA's layers: tracing is what takes the seconds here."""
    family = make_family("sd3")
    policy, base = family.make_policy(), family.make_policy()  # a fresh adapter is the identity
    randomise_adapter(policy)
    policy.compile(backend="eager")
    latents, embeds = some_latents(policy), policy.encode_prompts(prompts)
    with_adapter = velocity(policy, latents, embeds)
    with policy.disable_adapter():
        assert torch.equal(velocity(policy, latents, embeds), velocity(base, latents, embeds))
    assert not torch.equal(with_adapter, velocity(base, latents, embeds))


def test_compiled_blocks_may_be_checkpointed_too(family, adapted, prompts):
    policy = family.make_policy()
    policy.load_adapter_state(adapted.adapter_state())
    expected = gradients(policy, prompts)
    policy.enable_gradient_checkpointing()
    policy.compile(backend="aot_eager")  # captures the backward pass as well, and generates no code
    # 1e-5 of the gradient's own size: its operations are decomposed, and add up in another order
    for one, other in zip(gradients(policy, prompts), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def test_ratio_starts_at_exactly_one_in_half_precision_with_generated_code(make_family, prompts):
    """Half a minute of g++: the rounding is that of the generated kernels, which no cheaper backend has."""
    policy, sde = make_family("sd3").make_policy(mixed_precision="bf16"), SDE(3, noise_level=0.7)
    randomise_adapter(policy)
    policy.compile()
    trajectories = rollout(policy, prompts, [1, 2], sde, num_kept=2)
    for step in range(2):
        assert torch.equal(replay(policy, trajectories, step, sde).log_prob, trajectories.log_probs[:, step])
