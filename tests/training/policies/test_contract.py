"""What every model family owes the trainer, on tiny random pipelines, with diffusers' own pipeline as the reference."""

import math
from contextlib import contextmanager, nullcontext
from functools import cache, partial

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter
from torch.nn.parallel import DistributedDataParallel

from flow_grpo.reward_map import pool_to_tokens
from flow_grpo.training.policies.load import load_policy
from flow_grpo.training.rollout import SDE, replay, rollout
from flow_grpo.training.sde import KINDS

SIGMA = torch.tensor(0.6)
ODE = SDE(3, noise_level=0.0)
TOKENS = range(16)


def some_latents(policy, batch=2, seed=0):
    return torch.randn(batch, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


def velocity(policy, latents, embeds):
    with torch.no_grad():
        return policy.velocity(latents, SIGMA, embeds)


def with_changed_token(policy, latents, token):
    """The latents, 3 higher wherever they belong to the token; the gradient of `to_tokens` says where that is."""
    latents = latents.clone().requires_grad_(True)
    (belongs,) = torch.autograd.grad(policy.to_tokens(latents)[:, token].sum(), latents)
    return latents.detach() + 3 * belongs


def last_latents(policy, prompts, start):
    """The latents that a rollout without noise ends on, from a start of its own."""
    embeds, sigmas, sample = policy.encode_prompts(prompts), policy.sigmas(ODE.num_steps), start
    with torch.no_grad():
        for sigma, sigma_next in zip(sigmas, sigmas[1:]):
            sample = sample + (sigma_next - sigma) * policy.velocity(sample, sigma, embeds)
    return sample


def gradients(policy, prompts):
    """Of every trained parameter, by a loss that weighs all of the velocity."""
    predicted = policy.velocity(some_latents(policy), SIGMA, policy.encode_prompts(prompts))
    return torch.autograd.grad(predicted.square().sum(), policy.trainable_parameters())


def blocks(policy):
    """The transformer's blocks, stack after stack."""
    for stack in policy.network.children():
        yield from stack if isinstance(stack, torch.nn.ModuleList) else ()


def randomise_adapter(policy, seed=0):
    """Give the adapter weights that change the velocity; a fresh one is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def shared(family):
    """shared(mixed_precision, **options) -> a policy that several tests ask, and none changes: loading takes most seconds."""
    return cache(family.make_policy)


@pytest.fixture(scope="module")
def policy(family):
    return family.make_policy()


@pytest.fixture(scope="module")
def adapted(family):
    """A policy whose adapter, of scale alpha / rank = 2, changes the velocity."""
    policy = family.make_policy(lora_rank=4, lora_alpha=8)
    randomise_adapter(policy)
    return policy


@pytest.fixture(scope="module")
def pipeline(family):
    return family.load_pipeline()


# Tokens


@pytest.mark.parametrize("token, is_pixel", [(0, True), *((token, False) for token in TOKENS)])
@torch.no_grad()
def test_bright_pixels_reach_the_token_that_their_map_is_pooled_to(family, policy, token, is_pixel):
    """One pixel at the top left, and each token's square, by the VAE's encoder and the pipeline's own packing."""
    row, column, side = family.side(token // 4), family.side(token % 4), 1 if is_pixel else family.side(1)
    square = (..., slice(row, row + side), slice(column, column + side))
    bright_map = torch.zeros(1, family.side(4), family.side(4))
    bright_map[square] = 1
    images = 2 * torch.rand(8, 3, *bright_map.shape[1:], generator=torch.Generator().manual_seed(0)) - 1
    bright_images = images.clone()
    bright_images[square] = 1

    def tokens(pixels):
        return policy.to_tokens(family.encode(policy.pipeline.vae, pixels))

    change = (tokens(bright_images) - tokens(images)).abs().mean(dim=(0, 2))  # (N,)
    assert pool_to_tokens(bright_map, policy.token_grid)[0].nonzero().tolist() == [[token]]
    assert change.argmax().item() == token


@pytest.mark.parametrize("token", TOKENS)
def test_a_changed_token_changes_the_pixels_that_the_map_pools_to_it(policy, token):
    latents = some_latents(policy, batch=8)
    changed = with_changed_token(policy, latents, token)
    change = (policy.decode(changed) - policy.decode(latents)).abs().mean(dim=(0, 1))  # (H, W)
    assert pool_to_tokens(change[None], policy.token_grid).argmax().item() == token


@pytest.mark.parametrize("token", TOKENS)
def test_a_changed_token_changes_its_own_velocity_most(policy, token, prompts):
    """The transformer's own order of tokens is ours, so that a token's log-prob is of the token that was weighted."""
    latents, embeds = some_latents(policy), policy.encode_prompts(prompts)
    changed = with_changed_token(policy, latents, token)
    change = velocity(policy, changed, embeds) - velocity(policy, latents, embeds)
    assert policy.to_tokens(change).square().mean(dim=(0, 2)).argmax().item() == token


def test_tokens_hold_every_latent_exactly_once(policy):
    latents = torch.arange(3.0 * math.prod(policy.latent_shape)).reshape(3, *policy.latent_shape)
    tokens = policy.to_tokens(latents)
    assert tokens.shape == (3, 4 * 4, 4 * 2 * 2)
    for image, its_tokens in zip(latents, tokens, strict=True):
        assert torch.equal(its_tokens.flatten().sort().values, image.flatten().sort().values)


def test_a_resolution_of_broken_tokens_is_refused(family):
    broken = family.side(4) + family.layout.multiple // 2
    with pytest.raises(ValueError, match=f"resolution={broken} must be a multiple of {family.layout.multiple}"):
        family.make_policy(resolution=broken)


# The pipeline as reference


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
        # another batch size takes other matrix kernels, which round otherwise
        one = slice(i, i + 1)
        torch.testing.assert_close(vars(alone), vars(embeds[one]), atol=1e-5, rtol=0)
        torch.testing.assert_close(velocity(policy, latents[one], alone), together[one], atol=1e-5, rtol=0)
        assert torch.equal(policy.decode(latents[one]), images[one])  # decoded image by image


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


# The adapter


def test_gradients_reach_all_of_the_adapter_and_nothing_else(adapted, prompts):
    for name, parameter in adapted.network.named_parameters():
        assert parameter.requires_grad == ("lora" in name), name
        assert not parameter.requires_grad or parameter.dtype == torch.float32
    for name, part in adapted.pipeline.components.items():
        if isinstance(part, torch.nn.Module) and part is not adapted.network:
            assert not any(parameter.requires_grad for parameter in part.parameters()), name
    names = [name for name, parameter in adapted.network.named_parameters() if parameter.requires_grad]
    without = [name for name, gradient in zip(names, gradients(adapted, prompts), strict=True) if not gradient.any()]
    # SD3's last block drops its text, and with it what the text's queries found
    assert all("transformer_blocks.1.attn.add_q_proj" in name for name in without)


def test_half_precision_leaves_the_adapter_the_vae_and_the_velocity_in_fp32(shared, prompts):
    policy = shared("bf16", guidance_scale=4.5)
    dtypes = {p.requires_grad: p.dtype for p in policy.network.parameters() if p.is_floating_point()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert next(policy.pipeline.vae.parameters()).dtype == torch.float32
    predicted = velocity(policy, some_latents(policy), policy.encode_prompts(prompts))
    assert predicted.dtype == torch.float32 and predicted.isfinite().all()


def test_a_fresh_adapter_is_the_base_model(family, policy, pipeline, prompts):
    start = some_latents(policy)
    expected = family.draw(pipeline, prompts, start)
    # the sampler is another, whose products are rounded otherwise
    torch.testing.assert_close(last_latents(policy, prompts, start), expected, atol=1e-5, rtol=0)


@contextmanager
def distributed(policy, tmp_path):
    """The policy behind DistributedDataParallel, as a run of several processes has it."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    policy.forward_module = DistributedDataParallel(policy.network)
    try:
        yield
    finally:
        policy.forward_module = policy.network
        dist.destroy_process_group()


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_without_its_adapter_the_policy_is_the_base_model(adapted, policy, prompts, tmp_path, is_wrapped):
    latents, embeds = some_latents(adapted), adapted.encode_prompts(prompts)
    base = velocity(policy, latents, embeds)  # its adapter is fresh
    with distributed(adapted, tmp_path) if is_wrapped else nullcontext():
        with_adapter = velocity(adapted, latents, embeds)
        with adapted.disable_adapter():
            without_adapter = velocity(adapted, latents, embeds)
        assert torch.equal(without_adapter, base)
        assert (with_adapter - base).abs().max() > 0.01
        assert torch.equal(velocity(adapted, latents, embeds), with_adapter)


def test_the_adapter_is_back_after_an_error_and_goes_on_training(adapted, prompts):
    before = gradients(adapted, prompts)
    with pytest.raises(RuntimeError, match="midway"), adapted.disable_adapter():
        raise RuntimeError("midway")
    after = gradients(adapted, prompts)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("reader", ["folder", "tensors without the header", "peft alone", "matrices alone"])
def test_saved_lora_acts_alike_whoever_reads_it(family, adapted, pipeline, prompts, tmp_path, reader):
    start = some_latents(adapted)
    adapted.save_adapter(tmp_path, adapted.adapter_state())
    tensors = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    fresh = family.load_pipeline()
    if reader == "folder":
        fresh.load_lora_weights(tmp_path)
    elif reader == "tensors without the header":
        fresh.load_lora_weights(dict(tensors))
    elif reader == "peft alone":
        config = LoraConfig(r=4, lora_alpha=4, target_modules=adapted.adapter.config.target_modules)
        inject_adapter_in_model(config, fresh.transformer)
        set_peft_model_state_dict(
            fresh.transformer, {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        )
    else:
        for name in tensors:
            if name.endswith(".lora_A.weight"):
                layer = fresh.transformer.get_submodule(
                    name.removeprefix("transformer.").removesuffix(".lora_A.weight")
                )
                layer.weight.data += tensors[name.replace(".lora_A.", ".lora_B.")] @ tensors[name]
    expected = family.draw(fresh, prompts, start)
    assert (expected - family.draw(pipeline, prompts, start)).abs().max() > 0.01, "no change would prove nothing"
    # an adapter at another scale would be off by half its effect; merged, the same products are summed in another order
    torch.testing.assert_close(last_latents(adapted, prompts, start), expected, atol=1e-5, rtol=0)


def test_saved_lora_loads_as_the_base_of_another_policy(family, adapted, prompts, tmp_path):
    adapted.save_adapter(tmp_path, adapted.adapter_state())
    merged = family.make_policy(lora=tmp_path)
    latents, embeds = some_latents(adapted), adapted.encode_prompts(prompts)
    # merged into the weights the same products are summed in another order
    torch.testing.assert_close(velocity(merged, latents, embeds), velocity(adapted, latents, embeds), atol=1e-5, rtol=0)
    assert len(merged.adapter_state()) == len(adapted.adapter_state())  # its own, on top


def test_saving_lora_takes_the_present_weights(adapted, tmp_path):
    adapted.save_adapter(tmp_path, adapted.adapter_state())
    saved = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    state = adapted.adapter_state()
    assert len(saved) == len(state) == len(adapted.trainable_parameters())
    for name, tensor in state.items():  # the scale, 2, stands in one of the two matrices
        assert torch.equal(saved[f"transformer.{name}"], tensor * (2 if ".lora_B." in name else 1))


def test_lora_state_goes_from_one_policy_into_another(family, adapted, prompts):
    other = family.make_policy(lora_rank=4, lora_alpha=8)
    other.load_adapter_state({name: tensor.clone() for name, tensor in adapted.adapter_state().items()})
    latents, embeds = some_latents(other), other.encode_prompts(prompts)
    assert torch.equal(velocity(other, latents, embeds), velocity(adapted, latents, embeds))


def test_lora_state_of_another_model_is_refused_with_an_example(policy):
    state = policy.adapter_state()
    name, tensor = next(iter(state.items()))
    with pytest.raises(ValueError, match="another model.*elsewhere"):
        policy.load_adapter_state({**state, "elsewhere.lora_A.weight": tensor})
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        policy.load_adapter_state({other: tensor for other, tensor in state.items() if other != name})


# Memory and speed


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
    with policy.disable_adapter(), adapted.disable_adapter():
        assert torch.equal(velocity(policy, latents, embeds), velocity(adapted, latents, embeds))
    assert policy.adapter_state().keys() == adapted.adapter_state().keys()


def test_a_batch_of_another_size_has_graphs_of_its_own(make_family, prompts):
    """One family stands for all: tracing is what takes the seconds here, and each size is traced anew."""
    policy, counter = make_family("sd3").make_policy(), CompileCounter()
    policy.compile(backend=counter)
    for calls, batch in enumerate((2, 1), 1):
        velocity(policy, some_latents(policy, batch), policy.encode_prompts(prompts[:batch]))
        assert counter.frame_count == calls * len(list(blocks(policy)))


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


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown policy 'sdxl'; known: sd3, flux"):
        load_policy("sdxl", "models/tiny-sd3", "no")


def test_a_lora_that_is_no_folder_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="lora=.*nowhere is no folder; give a checkpoint's lora or lora_ema"):
        load_policy("sd3", str(tmp_path / "no model either"), "no", lora=str(tmp_path / "nowhere"))


def test_a_model_that_cannot_be_had_is_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="model=models/tiny/sd3 is neither a folder here nor a hub id"):
        load_policy("sd3", "models/tiny/sd3", "no")
    (tmp_path / "half").mkdir()
    with pytest.raises(ValueError, match="model=.*half holds no whole pipeline: "):
        load_policy("sd3", str(tmp_path / "half"), "no")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="model=models/tinysd3 is no folder here, and the hub did not give it: "):
        load_policy("sd3", "models/tinysd3", "no")
