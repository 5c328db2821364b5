"""Every family draws what diffusers' own pipeline draws, and its ratio starts at exactly 1."""

from functools import partial

import pytest
import torch

from flow_grpo.training.rollout import SDE, replay, rollout
from flow_grpo.training.sde import KINDS
from tests.training.policies.asking import ODE, some_latents, velocity


@pytest.mark.parametrize("guidance_scale, columns", [(1.0, 6), (4.5, 4)])
def test_without_noise_a_rollout_draws_what_the_pipeline_draws(family, pipeline, prompts, guidance_scale, columns):
    """The same latents and images, square or not, of prompts of very different lengths in one batch."""
    policy = family.make_policy(guidance_scale=guidance_scale, resolution=(family.side(4), family.side(columns)))
    uneven = ["a sign", prompts[1]]
    drawn = rollout(policy, uneven, [5, 6], ODE, num_kept=3)
    start, end = drawn.latents[:, 0], drawn.next_latents[:, -1]
    expected = family.draw(pipeline, uneven, start, guidance_scale, columns=columns)
    # fp32, three steps; the pipeline takes the halves of a guided batch in another order, or one by one, and guidance
    # multiplies their difference
    torch.testing.assert_close(end, expected, atol=4e-5, rtol=0)
    other = family.draw(pipeline, uneven[::-1], start, guidance_scale, columns=columns)
    assert (other - expected).abs().max() > 1e-3, "prompts that do not matter would prove nothing"
    images = family.draw(pipeline, uneven, start, guidance_scale, output_type="pt", columns=columns)
    assert images.shape == (2, 3, family.side(4), family.side(columns))
    assert (images[0] - images[1]).abs().max() > 0.01, "images all alike would prove nothing"
    # the pipeline decodes both images at once
    torch.testing.assert_close(drawn.images, images, atol=2e-5, rtol=0)


def test_a_policy_goes_from_one_size_to_another_and_back(family, policy, prompts):
    size = (family.side(2), family.side(6))
    wide, embeds = family.make_policy(resolution=size), policy.encode_prompts(prompts)
    square = velocity(policy, some_latents(policy), embeds)
    assert wide.token_grid == (2, 6)
    expected = velocity(wide, some_latents(wide), embeds)
    policy.set_resolution(size)
    try:
        assert policy.token_grid == (2, 6) and policy.latent_shape == wide.latent_shape
        assert torch.equal(velocity(policy, some_latents(policy), embeds), expected)
    finally:
        policy.set_resolution(family.side(4))
    assert torch.equal(velocity(policy, some_latents(policy), embeds), square)


def test_what_waits_on_the_cpu_comes_to_the_device_for_its_work_alone(family, policy, prompts):
    """On the CPU the device is the same; the calls to and fro show the order."""
    offloaded, moves = family.make_policy(offload=True), []
    for name, part in offloaded.pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            part.to = partial(lambda name, device: moves.append((name, str(device))), name)
    offloaded.device = torch.device("cpu")
    embeds = offloaded.encode_prompts(prompts)
    encoders = [name for name in offloaded.pipeline.components if name.startswith("text_encoder")]
    assert moves == [(name, "cpu") for name in encoders] * 2
    moves.clear()
    images = offloaded.decode(some_latents(offloaded))
    assert moves == [("vae", "cpu")] * 2
    torch.testing.assert_close(vars(embeds), vars(policy.encode_prompts(prompts)), atol=0, rtol=0)
    assert torch.equal(images, policy.decode(some_latents(policy)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance_scale, mixed_precision", [(1.0, "no"), (4.5, "no"), (4.5, "bf16")])
def test_the_ratio_is_exactly_one_before_the_first_update(shared, prompts, kind, guidance_scale, mixed_precision):
    policy, sde = shared(mixed_precision, guidance_scale=guidance_scale), SDE(4, 0.7, kind)
    trajectories = rollout(policy, prompts, [1, 2], sde, num_kept=3)
    for step in range(3):
        density = replay(policy, trajectories, step, sde)
        assert density.log_prob.shape == (2, 16) and density.log_prob.requires_grad
        assert torch.equal(density.log_prob, trajectories.log_probs[:, step])


def test_prompts_of_any_length_go_through_every_layer_in_the_same_shapes(shared, prompts):
    """An update may put any prompts into one batch. Other shapes would take other kernels, whose last bit is another."""
    policy, seen = shared("bf16", guidance_scale=4.5), []
    layers = [layer for layer in policy.network.modules() if isinstance(layer, torch.nn.Linear)]
    hooks = [layer.register_forward_pre_hook(lambda layer, args: seen.append(args[0].shape)) for layer in layers]
    shapes = []
    for texts in (["a sign"] * 2, ["a sign", prompts[1]], [prompts[1]] * 2):
        velocity(policy, some_latents(policy), policy.encode_prompts(texts))
        shapes.append(list(seen))
        seen.clear()
    for hook in hooks:
        hook.remove()
    assert shapes[0] and shapes[0] == shapes[1] == shapes[2]


def test_guidance_changes_the_velocity(shared, policy, prompts):
    guided = shared("no", guidance_scale=4.5)
    latents, embeds = some_latents(policy), policy.encode_prompts(prompts)
    assert (velocity(guided, latents, embeds) - velocity(policy, latents, embeds)).abs().max() > 1e-3


def test_a_batch_is_its_samples_one_by_one(policy, prompts):
    latents, embeds = some_latents(policy), policy.encode_prompts(prompts)
    together, images = velocity(policy, latents, embeds), policy.decode(latents)
    for i in range(2):
        alone = policy.encode_prompts(prompts[i : i + 1])
        one = slice(i, i + 1)
        torch.testing.assert_close(vars(alone), vars(embeds[one]), atol=0, rtol=0)
        # another batch size takes other matrix kernels, which round otherwise
        torch.testing.assert_close(velocity(policy, latents[one], alone), together[one], atol=1e-5, rtol=0)
        assert torch.equal(policy.decode(latents[one]), images[one])  # decoded image by image


def test_as_many_tokens_are_counted_as_the_text_encoder_reads(policy, prompts):
    encoders = [part for name, part in policy.pipeline.components.items() if name.startswith("text_encoder")]
    read = []

    def watch(encoder, args, asked):
        mask = asked.get("attention_mask")  # T5 gets none, and its padding is 0
        read.append(int((args[0] if mask is None else mask).count_nonzero()))

    hook = encoders[-1].register_forward_pre_hook(watch, with_kwargs=True)
    embeds = policy.encode_prompts(["a sign"])
    hook.remove()
    expected = int(embeds.mask.sum()) if hasattr(embeds, "mask") else read[0]  # without what the pipeline drops
    assert 0 < policy.num_tokens("a sign") == expected < policy.max_sequence_length


def test_decoded_images_are_fp32_in_the_unit_range(family, policy):
    images = policy.decode(100 * some_latents(policy).bfloat16())
    assert images.shape == (2, 3, family.side(4), family.side(4)) and images.dtype == torch.float32
    assert images.min() == 0 and images.max() == 1


def test_sigmas_fall_from_one_to_zero(policy):
    sigmas = policy.sigmas(5)
    assert len(sigmas) == 6 and sigmas[0] == 1 and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_sigmas_of_an_evaluation_do_not_change_those_of_a_rollout(policy):
    rollout_sigmas = policy.sigmas(5)
    kept = rollout_sigmas.clone()
    policy.sigmas(3)
    assert torch.equal(rollout_sigmas, kept) and torch.equal(policy.sigmas(5), kept)
