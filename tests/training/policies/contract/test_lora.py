"""Every family's LoRA: what it reaches, what is saved, and who reads it."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from tests.training.policies.asking import gradients, last_latents, some_latents, velocity


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
