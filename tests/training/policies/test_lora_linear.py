"""Our LoRA layer against peft's own: the same outputs, the same gradients, less to keep and to compute."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from flow_grpo.training.policies.lora_linear import LoraLinear

RANK, WIDTH = 4, 48


def make_layer(kind, dtype=torch.float32, bias=True):
    """A layer of scale 2 whose adapter in fp32 changes its outputs; every kind has the same weights."""
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(WIDTH, WIDTH, bias=bias, dtype=dtype).requires_grad_(False)
    layer = kind(base, "default", config=LoraConfig(r=RANK, lora_alpha=2 * RANK), r=RANK, lora_alpha=2 * RANK)
    for parameter in layer.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    for name in ("lora_A", "lora_B"):
        getattr(layer, name).float()
    return layer


def some_inputs(dtype=torch.float32):
    """A slice, as attention hands it on."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 20, WIDTH, generator=generator)[:, :13].to(dtype).requires_grad_()


def outputs_and_gradients(layer, x):
    outputs = layer(x)
    weighed = outputs.float() * torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2))
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    return outputs, *torch.autograd.grad(weighed.sum(), [x, *trained])


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_pefts(bias):
    ours = outputs_and_gradients(make_layer(LoraLinear, bias=bias), some_inputs())
    pefts = outputs_and_gradients(make_layer(lora.Linear, bias=bias), some_inputs())
    for one, other in zip(ours, pefts, strict=True):
        # fp32: the same sums over 48 values in another order
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_in_half_precision_it_errs_no_more_than_peft(autocast):
    def results(kind, dtype):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype == torch.bfloat16):
            return outputs_and_gradients(make_layer(kind, dtype), some_inputs(dtype))

    def error(kind):
        pairs = zip(results(kind, torch.bfloat16), results(lora.Linear, torch.float32), strict=True)
        return [((one.float() - exact).norm() / exact.norm()).item() for one, exact in pairs]

    ours, pefts = error(LoraLinear), error(lora.Linear)
    # bf16 keeps 8 bits: half a percent of a result's size for each rounding
    assert max(ours) < 0.015 and max(pefts) < 0.015


def test_a_fresh_adapter_and_one_that_is_off_are_the_base_layer_bit_for_bit():
    layer, x = make_layer(LoraLinear), some_inputs()
    changed = layer(x)
    layer.enable_adapters(False)
    base = layer(x)
    assert torch.equal(base.flatten(0, 1), layer.base_layer(x.flatten(0, 1)))
    layer.enable_adapters(True)
    assert (changed - base).abs().max() > 0.1 and torch.equal(layer(x), changed)
    nn.init.zeros_(layer.lora_B["default"].weight)
    assert torch.equal(layer(x), base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_and_keeps_less_than_peft(dtype):
    def cost(kind):
        layer, kept = make_layer(kind, dtype), {}
        x = torch.randn(512, WIDTH).to(dtype).requires_grad_()
        with (
            FlopCounterMode(display=False) as flops,
            saved_tensors_hooks(
                lambda tensor: kept.setdefault((tensor.data_ptr(), tensor.dtype), tensor), lambda tensor: tensor
            ),
        ):
            layer(x).float().sum().backward()
        return flops.get_total_flops(), sum(tensor.nbytes for tensor in kept.values())

    (our_flops, our_bytes), (peft_flops, peft_bytes) = cost(LoraLinear), cost(lora.Linear)
    assert our_bytes < peft_bytes
    if dtype == torch.float32:  # four of the adapter's six products over the tokens; peft keeps the inner result, too
        assert our_flops < 0.95 * peft_flops
    else:  # the same products; peft keeps its input a second time, in fp32
        assert our_flops == peft_flops and our_bytes < 0.6 * peft_bytes
