"""SD3 as a policy, on the committed tiny pipeline: token order, the adapter, and the pipeline's own sampler as reference."""

from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from flow_grpo.reward_map import pool_to_tokens
from flow_grpo.training.policies.load import load_policy
from flow_grpo.training.rollout import SDE, rollout, sample_noise

MODEL = "models/tiny-sd3"
SIGMA = torch.tensor(0.6)


def some_latents(policy, batch=2, seed=0):
    return torch.randn(batch, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


def randomise_adapter(policy, seed=0):
    """Give the adapter weights that change the velocity; a fresh one is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.network.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def adapted(make_policy):
    """A policy whose adapter, of scale alpha / rank = 2, changes the velocity."""
    policy = make_policy(lora_rank=4, lora_alpha=8)
    randomise_adapter(policy)
    return policy


@pytest.fixture(scope="module")
def base_pipeline():
    return StableDiffusion3Pipeline.from_pretrained(MODEL)


def pipeline_velocity(pipeline, latents, embeds):
    with torch.no_grad():
        return pipeline.transformer(
            hidden_states=latents,
            timestep=(SIGMA * 1000).expand(len(latents)),
            encoder_hidden_states=embeds.tokens,
            pooled_projections=embeds.pooled,
            return_dict=False,
        )[0]


def velocity(policy, latents, embeds):
    with torch.no_grad():
        return policy.velocity(latents, SIGMA, embeds)


# Tokens


def test_one_bright_top_left_pixel_reaches_token_0_of_map_and_latents(policy):
    image_map = torch.zeros(1, 64, 64)
    image_map[0, 0, 0] = 1
    latents = torch.zeros(1, *policy.latent_shape)
    latents[0, :, 0, 0] = 1
    assert pool_to_tokens(image_map, policy.token_grid)[0].nonzero().tolist() == [[0]]
    assert policy.to_tokens(latents)[0].any(dim=-1).nonzero().tolist() == [[0]]


@pytest.mark.parametrize("token", [0, 7, 19, 56, 63])
def test_a_changed_token_changes_the_pixels_that_the_map_pools_to_it(policy, token, prompts):
    """The corners and a token off the diagonal, which would go elsewhere if rows and columns were swapped."""
    latents = rollout(policy, prompts[:1], [3], SDE(3, 0.7), 3).next_latents[:, -1]
    tokens = policy.to_tokens(latents)
    tokens[:, token] += 3
    change = (policy.decode(policy.from_tokens(tokens)) - policy.decode(latents)).abs().mean(dim=1)  # (1, H, W)
    assert pool_to_tokens(change, policy.token_grid).argmax().item() == token


@pytest.mark.parametrize("token", [0, 7, 19, 56])
def test_a_changed_token_changes_its_own_velocity_most(policy, token, prompts):
    """The transformer's own order of patches is ours, so that a token's log-prob is of the token that was weighted."""
    latents = some_latents(policy, batch=1)
    tokens = policy.to_tokens(latents)
    tokens[:, token] += 3
    embeds = policy.encode_prompts(prompts[:1])
    before = velocity(policy, latents, embeds)
    change = policy.to_tokens(velocity(policy, policy.from_tokens(tokens), embeds) - before).square().mean(dim=-1)
    assert change.argmax().item() == token


def test_from_tokens_inverts_to_tokens(policy):
    latents = some_latents(policy, batch=3)
    tokens = policy.to_tokens(latents)
    rows, columns = policy.token_grid
    assert tokens.shape == (3, rows * columns, 8 * 2 * 2)
    assert torch.equal(policy.from_tokens(tokens), latents)
    assert torch.equal(policy.to_tokens(policy.from_tokens(tokens)), tokens)


def test_the_grid_of_tokens_covers_the_image(policy):
    assert policy.latent_shape == (8, 16, 16) and policy.token_grid == (8, 8)


def test_a_resolution_of_broken_tokens_is_refused(make_policy):
    with pytest.raises(ValueError, match="resolution=60 must be a multiple of 8"):
        make_policy(resolution=60)


# The pipeline as reference


def test_the_folder_is_a_pipeline_that_loads_and_draws(base_pipeline, prompts):
    image = base_pipeline(
        prompts, height=64, width=64, num_inference_steps=2, max_sequence_length=72, output_type="pt"
    ).images
    assert image.shape == (2, 3, 64, 64) and image.isfinite().all()
    # prompts and noise reach the image: no two are alike
    assert (image[0] - image[1]).abs().max() > 0.01


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_without_noise_a_rollout_draws_what_the_pipeline_draws(make_policy, base_pipeline, prompts, guidance_scale):
    policy = make_policy(guidance_scale=guidance_scale)
    images = rollout(policy, prompts, [5, 6], SDE(4, noise_level=0.0), 0).images
    expected = base_pipeline(
        prompts,
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        latents=sample_noise([5, 6], 1, policy.latent_shape, torch.device("cpu"))[:, 0],
        max_sequence_length=72,
        output_type="pt",
    ).images
    # fp32, four steps, and with guidance the two halves of the batch in another order
    torch.testing.assert_close(images, expected, atol=1e-3, rtol=0)


def test_decoded_images_are_fp32_in_the_unit_range(policy):
    images = policy.decode(10 * some_latents(policy))
    assert images.shape == (2, 3, 64, 64) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1


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


def test_only_the_adapter_is_trained_and_it_is_fp32(policy):
    for name, parameter in policy.network.named_parameters():
        assert parameter.requires_grad == ("lora" in name), name
        assert not parameter.requires_grad or parameter.dtype == torch.float32
    for part in (policy.pipeline.vae, policy.pipeline.text_encoder, policy.pipeline.text_encoder_3):
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_half_precision_leaves_the_adapter_in_fp32():
    policy = load_policy("sd3", MODEL, "bf16", resolution=64, lora_rank=4, lora_alpha=8, max_sequence_length=72)
    dtypes = {p.requires_grad: p.dtype for p in policy.network.parameters() if p.is_floating_point()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert next(policy.pipeline.vae.parameters()).dtype == torch.float32


def test_both_streams_of_every_attention_are_adapted(policy):
    names = {name.rsplit(".lora_", 1)[0] for name in policy.lora_state()}
    first = {name.split("attn.")[1] for name in names if name.startswith("transformer_blocks.0.")}
    assert first == {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}


def test_a_fresh_adapter_is_the_base_model(make_policy, base_pipeline, prompts):
    policy = make_policy()
    latents, embeds = some_latents(policy), policy.encode_prompts(prompts)
    assert torch.equal(velocity(policy, latents, embeds), pipeline_velocity(base_pipeline, latents, embeds))


@contextmanager
def one_process_of_gloo(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def wrapped(policy):
    """The policy behind DistributedDataParallel, as a run of several processes has it."""
    policy.forward_module = DistributedDataParallel(policy.network)
    try:
        yield
    finally:
        policy.forward_module = policy.network


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_without_its_adapter_the_policy_is_the_base_model(adapted, base_pipeline, prompts, tmp_path, is_wrapped):
    def check():
        with_adapter = velocity(adapted, latents, embeds)
        with adapted.disable_adapter():
            without_adapter = velocity(adapted, latents, embeds)
        assert torch.equal(without_adapter, pipeline_velocity(base_pipeline, latents, embeds))
        assert not torch.allclose(with_adapter, without_adapter, atol=1e-3)
        assert torch.equal(velocity(adapted, latents, embeds), with_adapter)

    latents, embeds = some_latents(adapted), adapted.encode_prompts(prompts)
    if is_wrapped:
        with one_process_of_gloo(tmp_path), wrapped(adapted):
            check()
    else:
        check()


def test_the_adapter_is_back_after_an_error(adapted, prompts):
    latents, embeds = some_latents(adapted), adapted.encode_prompts(prompts)
    before = velocity(adapted, latents, embeds)
    with pytest.raises(RuntimeError, match="midway"), adapted.disable_adapter():
        raise RuntimeError("midway")
    assert torch.equal(velocity(adapted, latents, embeds), before)


def test_training_resumes_after_the_adapter_was_disabled(adapted, prompts):
    with adapted.disable_adapter():
        pass
    adapted.velocity(some_latents(adapted), SIGMA, adapted.encode_prompts(prompts)).sum().backward()
    gradients = [p.grad for p in adapted.network.parameters() if p.requires_grad]
    assert gradients and any(g is not None and g.any() for g in gradients)
    for parameter in adapted.network.parameters():
        parameter.grad = None


def test_saved_lora_loads_into_a_fresh_pipeline_with_its_scale(adapted, base_pipeline, prompts, tmp_path):
    latents, embeds = some_latents(adapted), adapted.encode_prompts(prompts)
    adapted.save_lora(tmp_path)
    fresh = StableDiffusion3Pipeline.from_pretrained(MODEL)
    fresh.load_lora_weights(tmp_path)
    expected = velocity(adapted, latents, embeds)
    loaded = pipeline_velocity(fresh, latents, embeds)
    base = pipeline_velocity(base_pipeline, latents, embeds)
    assert (expected - base).abs().max() > 0.01, "an adapter that changes nothing would prove nothing"
    # the same matrices and scale in the same fp32 operations; an adapter at scale 1 would be off by half its effect
    torch.testing.assert_close(loaded, expected, atol=1e-6, rtol=1e-6)


def test_saving_lora_takes_the_present_weights(adapted, tmp_path):
    adapted.save_lora(tmp_path)
    saved = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    state = adapted.lora_state()
    assert len(saved) == len(state)
    assert all(torch.equal(saved[f"transformer.{name}"], tensor) for name, tensor in state.items())


def test_lora_state_goes_from_one_policy_into_another(adapted, make_policy, prompts):
    other = make_policy(lora_rank=4, lora_alpha=8)
    other.load_lora_state({name: tensor.clone() for name, tensor in adapted.lora_state().items()})
    latents, embeds = some_latents(other), other.encode_prompts(prompts)
    assert torch.equal(velocity(other, latents, embeds), velocity(adapted, latents, embeds))


def test_lora_state_of_another_model_is_refused_with_an_example(policy):
    state = policy.lora_state()
    name, tensor = next(iter(state.items()))
    with pytest.raises(ValueError, match="another model.*elsewhere"):
        policy.load_lora_state({**state, "elsewhere.lora_A.weight": tensor})
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        policy.load_lora_state({other: tensor for other, tensor in state.items() if other != name})


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown policy 'sdxl'; known: sd3, flux"):
        load_policy("sdxl", MODEL, "no")


def test_a_slice_of_embeddings_is_a_batch_of_them(policy, prompts):
    embeds = policy.encode_prompts(prompts)
    both = type(embeds).cat([embeds[1:], embeds[:1]])
    assert torch.equal(both.tokens, embeds.tokens.flip(0)) and torch.equal(both.pooled, embeds.pooled.flip(0))
